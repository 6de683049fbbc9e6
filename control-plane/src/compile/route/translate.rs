//! Matches and filters, word for word from the Gateway API's language into the wire's.

use heddle_api::proto::v1::{self, path_match, path_rewrite, route_filter};
use heddle_resources::gateway::{
    AnyRule, Filter, GrpcMatch, Header, HeaderModifier, HttpMatch, Matches, PathMatch, PathRewrite,
    Redirect, ValueMatch,
};

/// What the API server writes where nothing is written.
const DEFAULT_REDIRECT_STATUS: u32 = 302;

/// A match that holds for every request is none.
pub(super) fn http_matches(matches: &[HttpMatch]) -> Vec<v1::RouteMatch> {
    let matches: Vec<_> = matches.iter().map(http_match).collect();
    if matches == [v1::RouteMatch::default()] { Vec::new() } else { matches }
}

fn http_match(one: &HttpMatch) -> v1::RouteMatch {
    v1::RouteMatch {
        path: one.path.as_ref().and_then(path),
        method: one.method.clone().unwrap_or_default(),
        headers: headers(&one.headers),
        query: one.query_params.iter().map(|param| pair(&param.name, &param.value)).collect(),
    }
}

/// The prefix `/` is that of every path.
fn path(path: &PathMatch) -> Option<v1::PathMatch> {
    let value = path.value.as_deref().unwrap_or("/");
    let r#match = match path.r#type.as_deref() {
        Some("Exact") => path_match::Match::Exact(value.to_owned()),
        _ if value == "/" => return None,
        _ => path_match::Match::Prefix(value.to_owned()),
    };
    Some(v1::PathMatch { r#match: Some(r#match) })
}

/// gRPC calls a method by the path `/service/method`.
pub(super) fn grpc_match(one: &GrpcMatch) -> v1::RouteMatch {
    let path = one.method.as_ref().and_then(|method| {
        let service = method.service.as_deref()?;
        Some(match method.method.as_deref() {
            Some(method) => path_match::Match::Exact(format!("/{service}/{method}")),
            None => path_match::Match::Prefix(format!("/{service}")),
        })
    });
    v1::RouteMatch {
        path: path.map(|path| v1::PathMatch { r#match: Some(path) }),
        headers: headers(&one.headers),
        ..v1::RouteMatch::default()
    }
}

/// Of names that differ in case alone only the first counts, as the Gateway API has it.
fn headers(headers: &[ValueMatch]) -> Vec<v1::NameValue> {
    let mut found: Vec<v1::NameValue> = Vec::with_capacity(headers.len());
    for header in headers {
        let name = header.name.to_ascii_lowercase();
        if found.iter().all(|other| other.name != name) {
            found.push(v1::NameValue { name, value: header.value.clone() });
        }
    }
    found
}

fn pair(name: &str, value: &str) -> v1::NameValue {
    v1::NameValue { name: name.to_owned(), value: value.to_owned() }
}

/// Filters whose type and field have been seen to agree.
pub(super) fn filters(filters: &[Filter]) -> Vec<v1::RouteFilter> {
    let filter = |filter: &Filter| {
        let request = filter.request_header_modifier.as_ref().map(modifier);
        let response = filter.response_header_modifier.as_ref().map(modifier);
        let rewrite = filter.url_rewrite.as_ref().map(|rewrite| v1::Rewrite {
            hostname: rewrite.hostname.clone().unwrap_or_default(),
            path: rewrite.path.as_ref().map(path_rewrite),
        });
        let filter = request
            .map(route_filter::Filter::RequestHeaders)
            .or_else(|| response.map(route_filter::Filter::ResponseHeaders))
            .or_else(|| {
                filter.request_redirect.as_ref().map(redirect).map(route_filter::Filter::Redirect)
            })
            .or_else(|| rewrite.map(route_filter::Filter::Rewrite));
        v1::RouteFilter { filter }
    };
    filters.iter().map(filter).collect()
}

fn modifier(modifier: &HeaderModifier) -> v1::HeaderModifier {
    let pairs = |headers: &[Header]| {
        headers.iter().map(|one| pair(&one.name.to_ascii_lowercase(), &one.value)).collect()
    };
    v1::HeaderModifier {
        set: pairs(&modifier.set),
        add: pairs(&modifier.add),
        remove: modifier.remove.iter().map(|name| name.to_ascii_lowercase()).collect(),
    }
}

fn redirect(redirect: &Redirect) -> v1::Redirect {
    v1::Redirect {
        scheme: redirect.scheme.clone().unwrap_or_default(),
        hostname: redirect.hostname.clone().unwrap_or_default(),
        path: redirect.path.as_ref().map(path_rewrite),
        port: redirect.port.map_or(0, u32::from),
        status: redirect.status_code.map_or(DEFAULT_REDIRECT_STATUS, u32::from),
    }
}

fn path_rewrite(rewrite: &PathRewrite) -> v1::PathRewrite {
    let full = rewrite.replace_full_path.clone().map(path_rewrite::Path::Full);
    let prefix = || rewrite.replace_prefix_match.clone().map(path_rewrite::Path::Prefix);
    v1::PathRewrite { path: full.or_else(prefix) }
}

/// The field of the object that `path`, a field of the compiled rule, was made from.
pub(super) fn path_in_object(rule: &AnyRule<'_>, path: &str) -> String {
    let mut out: Vec<String> = Vec::new();
    let mut filters = rule.filters;
    for part in path.split('.') {
        let (name, index) = part.split_once('[').map_or((part, None), |(name, index)| {
            (name, index.trim_end_matches(']').parse::<usize>().ok())
        });
        let at = index.map(|at| format!("[{at}]")).unwrap_or_default();
        match (name, index) {
            ("query", _) => out.push(format!("queryParams{at}")),
            ("backends", _) => {
                filters =
                    index.and_then(|at| rule.backend_refs.get(at)).map_or(&[], |b| &b.filters);
                out.push(format!("backendRefs{at}"));
            }
            ("filters", Some(at)) => {
                out.push(part.to_owned());
                out.extend(filters.get(at).and_then(field_of).map(str::to_owned));
            }
            ("path", None) if matches!(rule.matches, Matches::Grpc(_)) => out.push("method".into()),
            ("status", None) => out.push("statusCode".into()),
            // The wire's word for the one of several that is given.
            ("match" | "request_headers" | "response_headers" | "redirect" | "rewrite", None) => {}
            _ => out.push(part.to_owned()),
        }
    }
    out.join(".")
}

fn field_of(filter: &Filter) -> Option<&'static str> {
    Some(match filter.r#type.as_str() {
        "RequestHeaderModifier" => "requestHeaderModifier",
        "ResponseHeaderModifier" => "responseHeaderModifier",
        "RequestRedirect" => "requestRedirect",
        "URLRewrite" => "urlRewrite",
        _ => return None,
    })
}
