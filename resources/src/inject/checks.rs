//! Probes and hooks: what the kubelet would ask of the application is asked by the proxy instead.
//!
//! A dial of the kubelet's would arrive in plaintext, and a redirected TCP probe would find the proxy
//! and always succeed. `exec` and `sleep` need no network and stay.

use heddle_api::names::{METRICS_PORT, PROBE_PORT};
use heddle_api::probes::{
    Check, Declared, HttpGet, Invalid, KEY_HEADER, Key, MAX_TIMEOUT_MS, Moment, Table,
};
use serde_json::{Value, json};

use super::edit::Editor;
use super::pod::{Container, PodView, list, quote};

/// Answers when the proxy is drained, at its metrics port.
const DRAINED_PATH: &str = "/drained";
/// The three ways of asking over the network.
const ACTIONS: [&str; 3] = ["httpGet", "tcpSocket", "grpc"];

/// Points every check of the application's at the proxy, and gives main containers without a preStop
/// one that waits until the proxy has nothing inbound left: an application that exits at once on
/// SIGTERM then costs no request. Answers what the proxy has to perform.
pub(super) fn redirect(
    edit: &mut Editor,
    view: &PodView<'_>,
    known: Table,
    warnings: &mut Vec<String>,
) -> Result<Table, String> {
    let mut redirect = Redirect { edit, warnings, table: known, grace: view.grace_seconds() };
    for container in view.application() {
        for moment in Moment::ALL {
            redirect.check(container, moment)?;
        }
        redirect.await_drain(container);
    }
    Ok(redirect.table)
}

/// For a person.
pub(super) fn too_many(error: &Invalid) -> String {
    format!("the pod's probes and hooks cannot be performed by its proxy: {error}")
}

struct Redirect<'a> {
    edit: &'a mut Editor,
    warnings: &'a mut Vec<String>,
    table: Table,
    grace: u64,
}

impl Redirect<'_> {
    fn check(&mut self, container: Container<'_>, moment: Moment) -> Result<(), String> {
        let place = place(moment);
        let declared = place.iter().fold(container.value, |value, field| &value[*field]);
        let action = ACTIONS.into_iter().find(|action| declared[*action].is_object());
        let Some(action) = action else { return Ok(()) };
        let field = container.field(&format!("{}.{action}", place.join(".")));
        let key = Key::new(container.name(), moment);
        let port = &declared[action]["port"];
        if *port == PROBE_PORT {
            let is_known =
                declared[action]["path"] == key.path() && self.table.find(&key).is_some();
            return if is_known { Ok(()) } else { Err(lost(&field)) };
        }
        // The proxy's own pages: nobody redirects them.
        if *port == METRICS_PORT {
            return Ok(());
        }
        if moment.is_hook() && action != "httpGet" {
            self.warnings.push(format!("{field}: Kubernetes performs no such hook: use httpGet"));
            return Ok(());
        }
        if declared[action]["host"].as_str().is_some_and(|host| !host.is_empty()) {
            self.warnings.push(format!(
                "{field}.host: the kubelet asks that host itself, from the node, and not this pod; \
                 to ask this pod remove it (and name a virtual host by the header Host)"
            ));
            return Ok(());
        }
        let Some(port) = resolve(port, container.value) else {
            self.warnings.push(format!(
                "{field}.port: {} is neither a port nor the name of one of the container's ports: \
                 the check cannot succeed",
                quote(port.as_str().unwrap_or(&port.to_string()))
            ));
            return Ok(());
        };
        let check = read(action, &declared[action], port);
        let timeout_ms = self.timeout_ms(declared, moment);
        self.table.insert(key.clone(), Declared { timeout_ms, check });
        let mut rewritten = declared.clone();
        if let Some(fields) = rewritten.as_object_mut() {
            fields.retain(|name, _| !ACTIONS.contains(&name.as_str()));
        }
        let page_key = json!({ "name": KEY_HEADER, "value": self.table.page_key().as_str() });
        rewritten["httpGet"] = json!({
            "path": key.path(), "port": PROBE_PORT, "scheme": "HTTP", "httpHeaders": [page_key],
        });
        let index = container.index.to_string();
        let mut path = vec!["spec", container.list, index.as_str()];
        path.extend(place);
        self.edit.set(&path, rewritten);
        Ok(())
    }

    /// A tenth less than the kubelet waits, so that it hears why; of hooks, as long as they can take.
    fn timeout_ms(&self, declared: &Value, moment: Moment) -> u32 {
        let seconds = match moment {
            Moment::Liveness | Moment::Readiness | Moment::Startup => {
                declared["timeoutSeconds"].as_u64().unwrap_or(1).max(1)
            }
            Moment::PreStop => self.grace.max(1),
            Moment::PostStart => return MAX_TIMEOUT_MS,
        };
        let ms = seconds.saturating_mul(900);
        u32::try_from(ms).map_or(MAX_TIMEOUT_MS, |ms| ms.min(MAX_TIMEOUT_MS))
    }

    fn await_drain(&mut self, container: Container<'_>) {
        if !container.is_main() || !container.value["lifecycle"]["preStop"].is_null() {
            return;
        }
        let index = container.index.to_string();
        let lifecycle = ["spec", container.list, index.as_str(), "lifecycle"];
        self.edit.ensure(&lifecycle, || json!({}));
        let hook = json!({
            "httpGet": { "path": DRAINED_PATH, "port": METRICS_PORT, "scheme": "HTTP" }
        });
        self.edit.set(&["spec", container.list, &index, "lifecycle", "preStop"], hook);
    }
}

/// Where a container declares it.
fn place(moment: Moment) -> &'static [&'static str] {
    match moment {
        Moment::Liveness => &["livenessProbe"],
        Moment::Readiness => &["readinessProbe"],
        Moment::Startup => &["startupProbe"],
        Moment::PostStart => &["lifecycle", "postStart"],
        Moment::PreStop => &["lifecycle", "preStop"],
    }
}

fn lost(field: &str) -> String {
    format!(
        "{field}: points at the proxy's probe port {PROBE_PORT}, and what it stood for before \
         injection is not in this pod: write what is to be asked of the application"
    )
}

/// As the kubelet does: a number, or the name of a port of this container.
fn resolve(port: &Value, container: &Value) -> Option<u16> {
    let number = match port.as_str() {
        Some(name) => {
            &list(&container["ports"]).find(|port| port["name"] == name)?["containerPort"]
        }
        None => port,
    };
    u16::try_from(number.as_u64()?).ok().filter(|port| *port > 0)
}

fn read(action: &str, declared: &Value, port: u16) -> Check {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    match action {
        "httpGet" => Check::Http(HttpGet {
            port,
            path: request_target(declared["path"].as_str().unwrap_or_default()),
            tls: declared["scheme"] == "HTTPS",
            headers: list(&declared["httpHeaders"])
                .map(|header| (text(&header["name"]), text(&header["value"])))
                .collect(),
        }),
        "grpc" => Check::Grpc { port, service: text(&declared["service"]) },
        _ => Check::Tcp { port },
    }
}

/// The path as the kubelet writes it into a request line: rooted, without fragment, and with
/// everything escaped that HTTP does not carry. A path that is no URL is taken for a mere name.
fn request_target(path: &str) -> String {
    let is_url = has_good_escapes(path) && !path.bytes().any(|b| b.is_ascii_control());
    let path = if is_url { path.split('#').next().unwrap_or_default() } else { path };
    let mut target = String::from(if path.starts_with('/') { "" } else { "/" });
    for byte in path.bytes() {
        let escape = match byte {
            b'%' | b'?' | b'#' => !is_url,
            b'"' | b'<' | b'>' | b'\\' | b'^' | b'`' | b'{' | b'|' | b'}' => true,
            _ => !byte.is_ascii_graphic(),
        };
        if escape {
            target.push_str(&format!("%{byte:02X}"));
        } else {
            target.push(char::from(byte));
        }
    }
    target
}

fn has_good_escapes(path: &str) -> bool {
    let mut parts = path.split('%');
    let _ = parts.next();
    parts.all(|rest| {
        let digits = rest.as_bytes().get(..2);
        digits.is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_written_as_the_kubelet_writes_them() {
        for (path, want) in [
            ("", "/"),
            ("/", "/"),
            ("healthz", "/healthz"),
            ("/healthz?a=b&c", "/healthz?a=b&c"),
            ("?a=b", "/?a=b"),
            ("/a b/ü", "/a%20b/%C3%BC"),
            ("/a%20b", "/a%20b"),
            ("/a%zz?b", "/a%25zz%3Fb"),
            ("/a#b", "/a"),
            ("/a\r\nb", "/a%0D%0Ab"),
            ("/{a}|\"b\"", "/%7Ba%7D%7C%22b%22"),
        ] {
            assert_eq!(request_target(path), want, "{path:?}");
        }
    }

    #[test]
    fn ports_are_found_as_the_kubelet_finds_them() {
        let container = json!({ "ports": [
            { "containerPort": 9090 }, { "name": "web", "containerPort": 8080 }
        ]});
        for (port, want) in [
            (json!(80), Some(80)),
            (json!("web"), Some(8080)),
            (json!("api"), None),
            (json!("80"), None),
            (json!(0), None),
            (json!(65_536), None),
            (json!(-1), None),
            (json!(null), None),
        ] {
            assert_eq!(resolve(&port, &container), want, "{port}");
        }
    }
}
