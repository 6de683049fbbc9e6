//! Where a redirect leads: within the pod, elsewhere, or nowhere. Pure.

use std::net::IpAddr;

use heddle_api::probes::HttpGet;
use http::header::{HOST, HeaderMap};
use http::uri::Authority;

/// What is asked next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) tls: bool,
    pub(super) port: u16,
    /// Path and query.
    pub(super) path: String,
    /// The `Host` to send, when it is not the address.
    pub(super) host: Option<String>,
}

impl Target {
    pub(super) fn new(get: &HttpGet, headers: &HeaderMap) -> Self {
        let host = headers.get(HOST).and_then(|host| Some(host.to_str().ok()?.to_owned()));
        Self {
            tls: get.tls,
            port: get.port,
            path: get.path.clone(),
            host: host.filter(|host| !host.is_empty()),
        }
    }
}

/// Where a redirect leads.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// To the same address.
    Here(Target),
    /// To another host: the kubelet does not follow, and is content.
    Elsewhere,
    /// To what is no URL of HTTP's.
    Nowhere,
}

/// Reads `location` as it stands in the answer of `from`.
pub(super) fn follow(from: &Target, address: IpAddr, location: &str) -> Next {
    let location = location.split('#').next().unwrap_or_default();
    let (tls, rest) = match scheme(location) {
        Some(("http", rest)) => (false, rest.strip_prefix("//")),
        Some(("https", rest)) => (true, rest.strip_prefix("//")),
        Some(_) => return Next::Nowhere,
        None => (from.tls, location.strip_prefix("//")),
    };
    let Some(rest) = rest else {
        // A scheme without a host leads nowhere; without either it is a path.
        return match scheme(location) {
            Some(_) => Next::Nowhere,
            None => Next::Here(Target { path: resolve(&from.path, location), ..from.clone() }),
        };
    };
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    let Ok(authority) = authority.parse::<Authority>() else { return Next::Nowhere };
    let host = authority.host().trim_matches(['[', ']']);
    if host.parse::<IpAddr>().ok() != Some(address) {
        return Next::Elsewhere;
    }
    let port = authority.port_u16().unwrap_or(if tls { 443 } else { 80 });
    Next::Here(Target { tls, port, path: resolve("/", path), host: None })
}

/// The scheme in small letters, and what follows its colon.
fn scheme(location: &str) -> Option<(&'static str, &str)> {
    let end = location.find([':', '/', '?'])?;
    let (name, rest) = location.split_at(end);
    let rest = rest.strip_prefix(':')?;
    if !name.starts_with(|c: char| c.is_ascii_alphabetic()) {
        return None;
    }
    let known = ["http", "https"].into_iter().find(|known| name.eq_ignore_ascii_case(known));
    Some((known.unwrap_or("other"), rest))
}

/// RFC 3986, 5.2: a reference without a host, in the document at `base`.
fn resolve(base: &str, reference: &str) -> String {
    let base_path = base.split('?').next().unwrap_or_default();
    if reference.is_empty() {
        return base.to_owned();
    }
    if reference.starts_with('?') {
        return format!("{base_path}{reference}");
    }
    let (path, query) = reference.split_at(reference.find('?').unwrap_or(reference.len()));
    let directory = base_path.rsplit_once('/').map_or("", |(directory, _)| directory);
    let joined = match path.starts_with('/') {
        true => path.to_owned(),
        false => format!("{directory}/{path}"),
    };
    format!("{}{query}", without_dots(&joined))
}

fn without_dots(path: &str) -> String {
    let mut kept: Vec<&str> = Vec::new();
    let segments: Vec<_> = path.split('/').skip(1).collect();
    for (index, segment) in segments.iter().enumerate() {
        match *segment {
            "." => {}
            ".." => drop(kept.pop()),
            other => kept.push(other),
        }
        // A path that ends in a dot segment names a directory.
        if index + 1 == segments.len() && matches!(*segment, "." | "..") {
            kept.push("");
        }
    }
    format!("/{}", kept.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(path: &str) -> Target {
        Target { tls: false, port: 8080, path: path.into(), host: Some("web.example".into()) }
    }

    fn here(tls: bool, port: u16, path: &str, host: Option<&str>) -> Next {
        Next::Here(Target { tls, port, path: path.into(), host: host.map(Into::into) })
    }

    #[test]
    fn a_redirect_stays_in_the_pod_by_address_alone() {
        let address: IpAddr = "10.0.0.1".parse().unwrap();
        for (location, want) in [
            ("http://10.0.0.1:9090/b", here(false, 9090, "/b", None)),
            ("HTTPS://10.0.0.1/b?c#d", here(true, 443, "/b?c", None)),
            ("http://10.0.0.1", here(false, 80, "/", None)),
            ("http://10.0.0.1?c", here(false, 80, "/?c", None)),
            ("//10.0.0.1:1/b", here(false, 1, "/b", None)),
            ("http://web.example/b", Next::Elsewhere),
            ("https://10.0.0.2:8080/", Next::Elsewhere),
            ("//evil.example/", Next::Elsewhere),
            ("http://[fd00::1]/", Next::Elsewhere),
            ("ftp://10.0.0.1/", Next::Nowhere),
            ("mailto:a@b", Next::Nowhere),
            ("http:b", Next::Nowhere),
            ("http://a b/", Next::Nowhere),
        ] {
            assert_eq!(follow(&from("/a"), address, location), want, "{location}");
        }
        let address: IpAddr = "fd00::1".parse().unwrap();
        let want = here(false, 7, "/", None);
        assert_eq!(follow(&from("/a"), address, "http://[fd00::1]:7/"), want);
    }

    #[test]
    fn paths_resolve_against_where_they_stand_and_keep_the_declared_host() {
        let address: IpAddr = "10.0.0.1".parse().unwrap();
        for (base, location, want) in [
            ("/a/b?q", "/c", "/c"),
            ("/a/b?q", "c?d", "/a/c?d"),
            ("/a/b?q", "?d", "/a/b?d"),
            ("/a/b?q", "", "/a/b?q"),
            ("/a/b/c", "../d", "/a/d"),
            ("/a", "../../d/./e/..", "/d/"),
            ("/a/b", "./", "/a/"),
            ("/", "c:d/e", "nowhere"),
        ] {
            let want = match want {
                "nowhere" => Next::Nowhere,
                path => here(false, 8080, path, Some("web.example")),
            };
            assert_eq!(follow(&from(base), address, location), want, "{base} {location}");
        }
    }
}
