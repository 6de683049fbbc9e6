//! What reads bytes from strangers, each with what must hold for every input.

use std::collections::BTreeSet;

use bytes::BytesMut;
use heddle_api::identity::SpiffeId;
use heddle_api::proto::v1;
use heddle_control_plane::authn::parse_identity;
use heddle_control_plane::compile::Compiler;
use heddle_control_plane::index::{Event, Index};
use heddle_policy::path::is_ambiguous;
use heddle_proxy::detect::{self, Verdict};
use heddle_proxy::http1::{
    BodyDecoder, BodyFraming, Limits, RequestEdits, RequestFacts, RequestHead, RequestTarget,
    ResponseHead, write_request_head,
};
use heddle_proxy::snapshot::Store;
use heddle_proxy::tls::TrustBundle;
use heddle_resources::reader;
use prost::Message as _;
use rustls_pki_types::CertificateDer;

mod route;

/// One thing that reads bytes.
pub struct Target {
    pub name: &'static str,
    /// Panics when something is wrong, else says what became of the input.
    pub run: fn(&[u8]) -> String,
    /// Inputs to begin with.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// Pieces that mean something to the target.
    pub words: &'static [&'static [u8]],
}

/// All of them.
pub const TARGETS: &[Target] = &[
    Target { name: "detect", run: run_detect, seeds: seed_http, words: HTTP_WORDS },
    Target { name: "http1-request", run: run_request, seeds: seed_http, words: HTTP_WORDS },
    Target { name: "http1-response", run: run_response, seeds: seed_response, words: HTTP_WORDS },
    Target { name: "http1-body", run: run_body, seeds: seed_body, words: HTTP_WORDS },
    Target { name: "discovery", run: run_discovery, seeds: seed_discovery, words: &[b"shop/web"] },
    Target { name: "manifests", run: run_manifests, seeds: seed_manifests, words: YAML_WORDS },
    Target { name: "spiffe-id", run: run_spiffe_id, seeds: seed_spiffe_id, words: SPIFFE_WORDS },
    Target { name: "certificate", run: run_certificate, seeds: seed_certificate, words: &[] },
    Target { name: "path", run: run_path, seeds: seed_path, words: PATH_WORDS },
    Target { name: "route", run: route::run, seeds: route::seeds, words: PATH_WORDS },
];

const HTTP_WORDS: &[&[u8]] = &[
    b"GET / HTTP/1.1\r\n",
    b"POST /a?b HTTP/1.0\r\n",
    b"CONNECT a:1 HTTP/1.1\r\n",
    b"OPTIONS * HTTP/1.1\r\n",
    b"HTTP/1.1 200 OK\r\n",
    b"HTTP/1.1 103 Early Hints\r\n",
    b"HTTP/1.1 101 Switching\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01",
    b"Host: a\r\n",
    b"Content-Length: 3\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Connection: close, x-hop\r\n",
    b"Upgrade: h2c, websocket\r\n",
    b"heddle-client-id: x\r\n",
    b"heddle_client_id: x\r\n",
    b"Expect: 100-continue\r\n",
    b"\r\n\r\n",
    b"3\r\nabc\r\n",
    b"0\r\n\r\n",
    b"ffffffffffffffff\r\n",
    b";a=\"b\"",
];

fn run_detect(input: &[u8]) -> String {
    let whole = detect::client_first(input);
    let mut decided = None;
    for end in 0..=input.len().min(256) {
        let verdict = detect::client_first(&input[..end]);
        match decided {
            None if verdict != Verdict::NeedMore => decided = Some(verdict),
            None => {}
            Some(first) => assert_eq!(first, verdict, "more bytes have changed a verdict"),
        }
    }
    if let Some(decided) = decided {
        assert_eq!(decided, whole, "more bytes have changed a verdict");
    }
    format!("{whole:?} {:?}", detect::server_first(input))
}

const FORWARD: RequestEdits<'static> = RequestEdits {
    target: RequestTarget::Origin,
    host_if_missing: std::net::SocketAddr::new(
        std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST),
        80,
    ),
    close: false,
    host: None,
    edits: &[],
    add: &[],
};

/// What is forwarded means to the next reader what it meant to us.
fn run_request(input: &[u8]) -> String {
    let mut head = RequestHead::new();
    let taken = match head.parse(input, &Limits::STANDARD) {
        Ok(Some(taken)) => taken,
        Ok(None) => return "incomplete".to_owned(),
        Err(refusal) => return format!("{refusal:?}"),
    };
    assert!(taken <= input.len(), "more was taken than there is");
    let mut wire = BytesMut::new();
    write_request_head(&head, input, &FORWARD, &mut wire);
    let mut next = RequestHead::new();
    let read = next.parse(&wire, &Limits::STANDARD);
    // What we add ourselves may be what goes over the limit.
    if let Err(refusal) = &read {
        let refusal = format!("{refusal:?}");
        assert!(
            refusal.contains("TooMany") || refusal.contains("TooLarge"),
            "the next hop refuses what we forward: {refusal}"
        );
        return refusal;
    }
    assert!(matches!(read, Ok(Some(n)) if n == wire.len()), "forwarded is not one whole head");
    assert_eq!(head.method(input), next.method(&wire));
    assert_eq!(head.path(input), next.path(&wire), "judged is not what is forwarded");
    assert_eq!(
        body_of(head.framing()),
        body_of(next.framing()),
        "two readers see bodies of different length"
    );
    let ours = next.fields().iter().filter(|field| field.name.of(&wire).starts_with(b"heddle-"));
    assert_eq!(ours.count(), 0, "a field of the mesh came through");
    let (framing, form) = (head.framing(), head.target_form());
    let framing =
        if let BodyFraming::Length(_) = framing { "Length".into() } else { format!("{framing:?}") };
    format!("{framing} {form:?} {} {}", head.keep_alive(), head.wants_upgrade())
}

/// An empty body is none: a CONNECT with `Content-Length: 0` is forwarded without it.
fn body_of(framing: BodyFraming) -> BodyFraming {
    if framing == BodyFraming::Length(0) { BodyFraming::None } else { framing }
}

fn run_response(input: &[u8]) -> String {
    let mut request = RequestHead::new();
    let asked = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    assert!(matches!(request.parse(asked, &Limits::STANDARD), Ok(Some(_))));
    let mut head = ResponseHead::new();
    match head.parse(input, &Limits::STANDARD, RequestFacts::from(&request)) {
        Ok(Some(taken)) => {
            assert!(taken <= input.len(), "more was taken than there is");
            let framing = head.framing();
            let framing = if let BodyFraming::Length(_) = framing {
                "Length".into()
            } else {
                format!("{framing:?}")
            };
            format!("{} {framing} {}", head.status() / 100, head.keep_alive())
        }
        Ok(None) => "incomplete".to_owned(),
        Err(bad) => format!("{bad:?}"),
    }
}

/// A body is the same in pieces: what is taken, and where it ends.
fn run_body(input: &[u8]) -> String {
    let mut whole = BodyDecoder::new(BodyFraming::Chunked, &Limits::STANDARD);
    let all = whole.advance(input);
    let mut pieces = BodyDecoder::new(BodyFraming::Chunked, &Limits::STANDARD);
    let (mut begin, mut taken, mut failed) = (0, 0, None);
    // What is not taken is shown again with the next byte.
    for end in 0..=input.len() {
        match pieces.advance(&input[begin..end]) {
            Ok(progress) => {
                begin += progress.raw;
                taken += progress.raw;
                if progress.done {
                    break;
                }
            }
            Err(refusal) => {
                failed = Some(refusal);
                break;
            }
        }
    }
    match (&all, &failed) {
        (Ok(progress), None) => {
            assert_eq!(progress.raw, taken, "pieces take another length");
            assert_eq!(progress.done, pieces.is_done(), "pieces end elsewhere");
        }
        (Err(_), Some(_)) => {}
        _ => panic!("whole {all:?}, in pieces {failed:?}"),
    }
    match all {
        Ok(progress) => format!("done {}", progress.done),
        Err(refusal) => format!("{refusal:?}"),
    }
}

/// A proxy takes whatever the stream says; what it rejects, it names.
fn run_discovery(input: &[u8]) -> String {
    let Ok(update) = v1::Update::decode(input) else { return "not an update".to_owned() };
    let sent = update.resources.len();
    let mut store = Store::new(Some("node"));
    let reports = store.apply(update);
    assert_eq!(reports.len(), sent, "a resource without a verdict");
    let _ = store.build();
    let reasons: BTreeSet<_> = reports
        .iter()
        .map(|report| match &report.rejection {
            Some(rejection) => format!("{}: {}", report.r#type, rejection.path),
            None => format!("{}: active", report.r#type),
        })
        .collect();
    reasons.into_iter().take(3).collect::<Vec<_>>().join(", ")
}

/// Whatever is written in a file, the control plane reads, indexes and compiles it.
fn run_manifests(input: &[u8]) -> String {
    let Ok(text) = std::str::from_utf8(input) else { return "not UTF-8".to_owned() };
    let reading = reader::read("fuzz.yaml", text);
    for error in &reading.errors {
        assert!(!error.message.is_empty(), "a mistake without a word about it");
    }
    let kinds: BTreeSet<_> =
        reading.objects.iter().map(|located| located.object.kind().as_str()).collect();
    let mistakes: BTreeSet<_> = reading.errors.iter().map(|error| error.message.as_str()).collect();
    let summary = format!("{kinds:?} {:?}", mistakes.iter().next());
    let all = reading.objects.into_iter().chain(reading.stand_ins);
    let mut index = Index::default();
    let changed = index.apply(all.map(Event::Apply).collect());
    let mut number = 0;
    let mut next = || {
        number += 1;
        v1::Version { epoch: 1, number }
    };
    let _ = Compiler::new().compile(&index, &changed, Vec::new(), &mut next);
    summary
}

fn run_spiffe_id(input: &[u8]) -> String {
    let Ok(text) = std::str::from_utf8(input) else { return "not UTF-8".to_owned() };
    match text.parse::<SpiffeId>() {
        Ok(id) => {
            assert_eq!(id.to_string(), text, "two spellings of one identity");
            "an identity".to_owned()
        }
        Err(error) => format!("{error:?}").split('(').next().unwrap_or_default().to_owned(),
    }
}

fn run_certificate(input: &[u8]) -> String {
    let certificate = CertificateDer::from(input.to_vec());
    let identity = parse_identity(&certificate);
    let root = TrustBundle::new("cluster.local".into(), [certificate]);
    format!("{:?} {}", identity.is_ok(), root.is_ok())
}

/// A path that is not called ambiguous means the same to a server that decodes and cleans it up.
fn run_path(input: &[u8]) -> String {
    let Ok(path) = std::str::from_utf8(input) else { return "not UTF-8".to_owned() };
    // Anything else is refused before a rule is asked.
    if !path.starts_with('/') || !path.bytes().all(|byte| byte.is_ascii_graphic()) {
        return "no path".to_owned();
    }
    if is_ambiguous(path) {
        return "ambiguous".to_owned();
    }
    let decoded = decode(input);
    let segments: Vec<_> = decoded.split(|byte| *byte == b'/').skip(1).collect();
    assert_eq!(
        segments.len(),
        input.iter().filter(|byte| **byte == b'/').count(),
        "decoding makes another number of segments"
    );
    for (at, segment) in segments.iter().enumerate() {
        let name = segment.split(|byte| *byte == b';').next().unwrap_or_default();
        assert!(name != b"." && name != b"..", "a segment that walks");
        assert!(!segment.is_empty() || at + 1 == segments.len(), "an empty segment");
        assert!(!segment.contains(&b'\\') && !segment.contains(&0), "a separator in disguise");
    }
    format!("plain {}", segments.len().min(4))
}

fn decode(path: &[u8]) -> Vec<u8> {
    let hex = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let mut decoded = Vec::with_capacity(path.len());
    let mut at = 0;
    while at < path.len() {
        let digits =
            (path.get(at + 1).copied().and_then(hex), path.get(at + 2).copied().and_then(hex));
        match (path[at], digits) {
            (b'%', (Some(high), Some(low))) => {
                decoded.push(high << 4 | low);
                at += 3;
            }
            (byte, _) => {
                decoded.push(byte);
                at += 1;
            }
        }
    }
    decoded
}

fn seed_http() -> Vec<Vec<u8>> {
    [
        &b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"[..],
        b"POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc",
        b"POST http://a/b HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        b"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00",
    ]
    .map(<[u8]>::to_vec)
    .into()
}

fn seed_response() -> Vec<Vec<u8>> {
    [
        &b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc"[..],
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.0 204 No Content\r\nConnection: keep-alive\r\n\r\n",
        b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n",
    ]
    .map(<[u8]>::to_vec)
    .into()
}

fn seed_body() -> Vec<Vec<u8>> {
    vec![b"3\r\nabc\r\n0\r\nX: y\r\n\r\n".to_vec(), b"1;a=\"b\"\r\nx\r\n0\r\n\r\n".to_vec()]
}

fn seed_discovery() -> Vec<Vec<u8>> {
    let resource = |kind: v1::ResourceType, name: &str, body: Vec<u8>| v1::Resource {
        r#type: kind.into(),
        name: name.into(),
        hash: 1,
        body: body.into(),
        ..v1::Resource::default()
    };
    let backend = v1::Backend { service: "shop/web".into(), weight: 1, ..v1::Backend::default() };
    let split = v1::Split { backends: vec![backend], source: "shop/web".into() };
    let endpoint = v1::Endpoint { address: "10.0.0.1".into(), port: 80, ..v1::Endpoint::default() };
    let endpoints = v1::Endpoints { endpoints: vec![endpoint.clone()] };
    let pod = v1::PodPort { endpoint: Some(endpoint), ..v1::PodPort::default() };
    let address = v1::Address { kind: Some(v1::address::Kind::Pod(pod)) };
    let mesh = v1::Mesh { trust_domain: "cluster.local".into(), ..v1::Mesh::default() };
    let inbound =
        v1::InboundPolicy { namespace: "shop".into(), pod: "web-1".into(), ..Default::default() };
    let policy = v1::Policy { source: "shop/web".into(), ..v1::Policy::default() };
    let rule = v1::RouteRule { source: "HTTPRoute/shop/web".into(), ..v1::RouteRule::default() };
    let route = v1::Route { rules: vec![rule] };
    let resources = vec![
        resource(v1::ResourceType::Route, "shop/web:80", route.encode_to_vec()),
        resource(v1::ResourceType::Mesh, "default", mesh.encode_to_vec()),
        resource(v1::ResourceType::Split, "shop/web", split.encode_to_vec()),
        resource(v1::ResourceType::Endpoints, "shop/web:80", endpoints.encode_to_vec()),
        resource(v1::ResourceType::Address, "10.0.0.1:80", address.encode_to_vec()),
        resource(v1::ResourceType::InboundPolicy, "shop/web-1", inbound.encode_to_vec()),
        resource(v1::ResourceType::Policy, "shop/web", policy.encode_to_vec()),
    ];
    let update = v1::Update { resources, complete: true, ..v1::Update::default() };
    vec![update.encode_to_vec()]
}

const YAML_WORDS: &[&[u8]] = &[
    b"\n---\n",
    b"kind: ",
    b"apiVersion: ",
    b"TrafficSplit",
    b"Pod",
    b"Service",
    b"spec:\n  ",
    b"{ ",
    b" }",
    b"[",
    b"]",
    b"&a ",
    b"*a",
    b"<<: ",
    b"!!str ",
    b"|\n",
    b"0x10",
    b"~",
    b"1e999",
    b"metadata: { name: x }\n",
];

fn seed_manifests() -> Vec<Vec<u8>> {
    let head = |kind: &str| {
        format!("apiVersion: heddle.io/v1alpha1\nkind: {kind}\nmetadata: {{ name: web }}\n")
    };
    [
        head("TrafficSplit") + "spec: { service: web, backends: [{ service: web-v1, weight: 1 }] }\n",
        head("TrafficPolicy") + "spec: { targetRef: { kind: Service, name: web }, timeouts: { request: 2s } }\n",
        head("AuthorizationPolicy")
            + "spec:\n  targetRef: { kind: Pods, selector: { app: web } }\n  rules: [{ action: Allow, \
               from: [{ serviceAccount: a }], to: [{ ports: [80], methods: [GET], paths: [\"/a/*\"] }] }]\n",
        head("MeshTLSPolicy") + "spec: { mode: Permissive, ports: [{ port: 80, mode: Strict }] }\n",
        "apiVersion: v1\nkind: Service\nmetadata: { name: web }\nspec: { clusterIP: 10.96.0.1, ports: \
         [{ name: http, port: 80 }] }\n---\napiVersion: v1\nkind: Pod\nmetadata: { name: a, uid: u }\nspec: \
         { containers: [{ name: a }] }\nstatus: { podIPs: [{ ip: 10.0.0.1 }] }\n".to_owned(),
    ]
    .map(String::into_bytes)
    .into()
}

const SPIFFE_WORDS: &[&[u8]] =
    &[b"spiffe://", b"/ns/", b"/sa/", b"cluster.local", b"..", b"%2f", b"//", b"\xc3\xa4"];

fn seed_spiffe_id() -> Vec<Vec<u8>> {
    vec![b"spiffe://cluster.local/ns/shop/sa/web".to_vec()]
}

fn seed_certificate() -> Vec<Vec<u8>> {
    let certificate = |names: &[&str]| {
        let uri = |name: &&str| rcgen::SanType::URI((*name).try_into().expect("it is ASCII"));
        let mut params = rcgen::CertificateParams::default();
        params.subject_alt_names = names.iter().map(uri).collect();
        let key = rcgen::KeyPair::generate().expect("a key can be made");
        params.self_signed(&key).expect("a certificate can be made").der().to_vec()
    };
    let web = "spiffe://cluster.local/ns/shop/sa/web";
    vec![certificate(&[web]), certificate(&[web, web]), certificate(&[])]
}

const PATH_WORDS: &[&[u8]] =
    &[b"/", b"//", b"/./", b"/../", b"..;", b"%2e", b"%2F", b"%5c", b"%00", b"%", b"\\", b"%252e"];

fn seed_path() -> Vec<Vec<u8>> {
    [&b"/"[..], b"/a/b", b"/a/b/", b"/a%20b/.c/..d/e..", b"/a;b=c/d"].map(<[u8]>::to_vec).into()
}
