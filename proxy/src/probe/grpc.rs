//! gRPC checks as the kubelet makes them: `grpc.health.v1.Health/Check`, without TLS; good is
//! `SERVING` and nothing else.

use std::net::SocketAddr;

use http::header::HeaderValue;
use http::uri::PathAndQuery;
use tonic::client::Grpc;
use tonic::transport::Endpoint;
use tonic::{Code, Request, Status};
use tonic_prost::ProstCodec;

use super::Failure;

const METHOD: &str = "/grpc.health.v1.Health/Check";
const SERVING: i32 = 1;
/// The answer is one number.
const MAX_ANSWER: usize = 4 * 1024;

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct HealthCheckRequest {
    #[prost(string, tag = "1")]
    pub(super) service: String,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(super) struct HealthCheckResponse {
    #[prost(int32, tag = "1")]
    pub(super) status: i32,
}

pub(super) async fn check(
    to: SocketAddr,
    service: &str,
    user_agent: Option<HeaderValue>,
) -> Result<(), Failure> {
    let failed = |error: tonic::transport::Error| {
        let cause = std::error::Error::source(&error).map(ToString::to_string);
        let cause = cause.map(|cause| format!(": {cause}")).unwrap_or_default();
        Failure::none(format!("cannot connect to {to}: {error}{cause}"))
    };
    let mut endpoint = Endpoint::from_shared(format!("http://{to}")).map_err(failed)?;
    if let Some(agent) = user_agent {
        endpoint = endpoint.user_agent(agent).map_err(failed)?;
    }
    let channel = endpoint.connect().await.map_err(failed)?;
    let mut client = Grpc::new(channel).max_decoding_message_size(MAX_ANSWER);
    client.ready().await.map_err(failed)?;
    let request = Request::new(HealthCheckRequest { service: service.to_owned() });
    let codec = ProstCodec::<HealthCheckRequest, HealthCheckResponse>::default();
    let answer = client.unary(request, PathAndQuery::from_static(METHOD), codec).await;
    match answer.map(|response| response.into_inner().status) {
        Ok(SERVING) => Ok(()),
        Ok(status) => Err(Failure {
            answered: true,
            ..Failure::none(format!("service {service:?} is {}", describe(status)))
        }),
        Err(status) => Err(refused(service, &status)),
    }
}

fn refused(service: &str, status: &Status) -> Failure {
    let code = status.code();
    let what = if code == Code::Unimplemented {
        "the application has no grpc.health.v1.Health service".to_owned()
    } else if code == Code::NotFound {
        format!("the application's health service knows no service {service:?}")
    } else {
        format!("the health check ended with {code:?}: {}", status.message())
    };
    Failure { answered: code != Code::Unavailable, ..Failure::none(what) }
}

fn describe(status: i32) -> &'static str {
    match status {
        2 => "NOT_SERVING",
        3 => "SERVICE_UNKNOWN",
        _ => "UNKNOWN",
    }
}
