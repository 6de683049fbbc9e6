//! What a stranger's target becomes under whatever rules: what a route makes of it is a target again.

use heddle_api::proto::v1;
use heddle_policy::route::{Called, Course, Fields, Request, RouteTable};
use prost::Message as _;

/// A header with one field.
struct OneField<'a>(&'a [u8]);

impl Fields for OneField<'_> {
    fn values<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
        (name == "x").then_some(self.0).into_iter()
    }
}

/// The first line is a request's target, what follows are the bytes of a Route. Whatever rules say,
/// what they make of a target is one, and stays under the prefix it was put under.
pub(super) fn run(input: &[u8]) -> String {
    let (target, rules) = input.split_at(first_line(input));
    let Ok(target) = std::str::from_utf8(target) else { return "not UTF-8".to_owned() };
    let Ok(route) = v1::Route::decode(rules.get(1..).unwrap_or_default()) else {
        return "not a route".to_owned();
    };
    let table = match RouteTable::try_from(route) {
        Ok(table) => table,
        Err(invalid) => return invalid.path.split('[').next().unwrap_or_default().to_owned(),
    };
    // Anything else is refused before a rule is asked.
    if !target.starts_with('/') || !target.bytes().all(|byte| byte.is_ascii_graphic()) {
        return "no target".to_owned();
    }
    let (path, query) = target.split_once('?').map_or((target, None), |(p, q)| (p, Some(q)));
    let request = Request { method: "GET", path, query, fields: &OneField(target.as_bytes()) };
    let Some(found) = table.find(&request) else { return "no rule".to_owned() };
    assert!(found.to_string().starts_with(&*found.rule.name), "a reason without its rule");
    match found.rule.draw(target.len() as u64) {
        Course::Redirect(redirect, _) => {
            let called = Called { authority: "a:1", port: 1, path, query };
            let Ok(location) = found.location(redirect, &called) else { return "walks".into() };
            let good = location.starts_with("http") && location.contains("://");
            assert!(good && location.bytes().all(|byte| byte.is_ascii_graphic()), "{location}");
            "redirect".to_owned()
        }
        Course::Backend(index) => {
            let changes = &found.rule.backends()[index].changes;
            let Some(rewrite) = &changes.path else { return "backend".to_owned() };
            let Ok(path) = found.rewrite(rewrite, path) else { return "walks".to_owned() };
            assert!(path.starts_with('/'), "{path}");
            assert!(path.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'?'), "{path}");
            "rewritten".to_owned()
        }
        Course::Invalid(_) => "invalid".to_owned(),
        Course::NoBackend => "no backend".to_owned(),
    }
}

fn first_line(input: &[u8]) -> usize {
    input.iter().position(|byte| *byte == b'\n').unwrap_or(input.len())
}

pub(super) fn seeds() -> Vec<Vec<u8>> {
    use v1::path_match::Match;
    use v1::path_rewrite::Path;
    use v1::route_filter::Filter;
    let filter = |filter| v1::RouteFilter { filter: Some(filter) };
    let onto = |path| Some(v1::PathRewrite { path: Some(path) });
    let rule = |path, filters, backends| v1::RouteRule {
        source: "HTTPRoute/a/b".into(),
        matches: vec![v1::RouteMatch {
            path: Some(v1::PathMatch { r#match: Some(path) }),
            ..v1::RouteMatch::default()
        }],
        filters,
        backends,
        ..v1::RouteRule::default()
    };
    let backend = v1::RouteBackend {
        service: "a/b".into(),
        port: 80,
        weight: 1,
        ..v1::RouteBackend::default()
    };
    let redirect =
        v1::Redirect { status: 302, path: onto(Path::Full("/x".into())), ..Default::default() };
    let rewrite = v1::Rewrite { path: onto(Path::Prefix("/new".into())), ..v1::Rewrite::default() };
    let pair = || v1::NameValue { name: "x".into(), value: "/q?x=y".into() };
    let conditions = v1::RouteRule {
        matches: vec![v1::RouteMatch {
            method: "GET".into(),
            headers: vec![pair()],
            query: vec![v1::NameValue { name: "x".into(), value: "y".into() }],
            path: None,
        }],
        ..rule(Match::Prefix("/".into()), vec![], vec![backend.clone()])
    };
    let rules = vec![
        rule(Match::Exact("/exact".into()), vec![filter(Filter::Redirect(redirect))], vec![]),
        rule(Match::Prefix("/old".into()), vec![filter(Filter::Rewrite(rewrite))], vec![backend]),
        conditions,
    ];
    let route = v1::Route { rules }.encode_to_vec();
    ["/exact?a=b", "/old/a/b", "/old/../b", "/q?x=y", "/none"]
        .map(|target| [target.as_bytes(), b"\n", &route].concat())
        .into()
}
