//! Precedence, matching, drawing, edits and targets, as tables; and what must hold for every table.

use proptest::prelude::*;

use super::*;

/// A header as a list of lines.
struct Lines<'a>(&'a [(&'a str, &'a str)]);

impl Fields for Lines<'_> {
    fn values<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
        self.0.iter().filter(move |(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_bytes())
    }
}

fn find<'t>(
    table: &'t RouteTable,
    method: &str,
    target: &str,
    lines: &[(&str, &str)],
) -> Option<Followed<'t>> {
    let (path, query) = target.split_once('?').map_or((target, None), |(p, q)| (p, Some(q)));
    table.find(&Request { method, path, query, fields: &Lines(lines) })
}

fn exact(path: &str) -> v1::PathMatch {
    v1::PathMatch { r#match: Some(v1::path_match::Match::Exact(path.into())) }
}

fn prefix(path: &str) -> v1::PathMatch {
    v1::PathMatch { r#match: Some(v1::path_match::Match::Prefix(path.into())) }
}

fn pair(name: &str, value: &str) -> v1::NameValue {
    v1::NameValue { name: name.into(), value: value.into() }
}

fn at(path: v1::PathMatch) -> v1::RouteMatch {
    v1::RouteMatch { path: Some(path), ..v1::RouteMatch::default() }
}

fn headers(pairs: &[(&str, &str)]) -> v1::RouteMatch {
    let headers = pairs.iter().map(|(name, value)| pair(name, value)).collect();
    v1::RouteMatch { headers, ..v1::RouteMatch::default() }
}

fn query(pairs: &[(&str, &str)]) -> v1::RouteMatch {
    let query = pairs.iter().map(|(name, value)| pair(name, value)).collect();
    v1::RouteMatch { query, ..v1::RouteMatch::default() }
}

fn method(method: &str) -> v1::RouteMatch {
    v1::RouteMatch { method: method.into(), ..v1::RouteMatch::default() }
}

fn rule(matches: Vec<v1::RouteMatch>) -> v1::RouteRule {
    v1::RouteRule { source: "HTTPRoute/shop/web".into(), matches, ..v1::RouteRule::default() }
}

fn table(rules: Vec<v1::RouteRule>) -> RouteTable {
    let rules = rules
        .into_iter()
        .enumerate()
        .map(|(index, rule)| v1::RouteRule { name: index.to_string(), ..rule })
        .collect();
    v1::Route { rules }.try_into().unwrap()
}

fn backend(service: &str, weight: u32) -> v1::RouteBackend {
    v1::RouteBackend { service: service.into(), port: 80, weight, ..v1::RouteBackend::default() }
}

fn rejected(rule: v1::RouteRule) -> String {
    RouteTable::try_from(v1::Route { rules: vec![rule] }).unwrap_err().path
}

/// Both match, and the second is the more specific one: it wins wherever it stands in the list.
#[test]
fn the_more_specific_match_wins() {
    let more = |a: v1::RouteMatch, b: v1::RouteMatch| v1::RouteMatch {
        path: b.path.or(a.path),
        method: if b.method.is_empty() { a.method } else { b.method },
        headers: [a.headers, b.headers].concat(),
        query: [a.query, b.query].concat(),
    };
    let all = || {
        let parts = [method("GET"), headers(&[("a", "1"), ("b", "2")]), query(&[("q", "1")])];
        parts.into_iter().reduce(more).unwrap()
    };
    for (name, less, more) in [
        ("exact over prefix", more(at(prefix("/v2/x")), all()), at(exact("/v2/x"))),
        ("longer prefix", more(at(prefix("/v2")), all()), at(prefix("/v2/x"))),
        ("any prefix over none", all(), at(prefix("/v2"))),
        ("method", more(headers(&[("a", "1"), ("b", "2")]), query(&[("q", "1")])), method("GET")),
        (
            "more headers",
            more(headers(&[("a", "1")]), query(&[("q", "1")])),
            headers(&[("a", "1"), ("b", "2")]),
        ),
        ("more query parameters", query(&[("q", "1")]), query(&[("q", "1"), ("r", "2")])),
        ("anything over nothing", v1::RouteMatch::default(), query(&[("q", "1")])),
    ] {
        let lines = [("A", "1"), ("b", "2")];
        for (rules, want) in [([&less, &more], 1), ([&more, &less], 0)] {
            let table = table(rules.map(|matched| rule(vec![matched.clone()])).into());
            let found = find(&table, "GET", "/v2/x?q=1&r=2", &lines).unwrap();
            assert_eq!(found.index, want, "{name}");
        }
    }
}

#[test]
fn among_equals_the_first_of_the_list_wins() {
    let twice = table(vec![
        rule(vec![at(prefix("/a")), at(prefix("/b"))]),
        rule(vec![at(prefix("/b/")), at(prefix("/c"))]),
    ]);
    assert_eq!(find(&twice, "GET", "/b", &[]).unwrap().index, 0);
    assert_eq!(find(&twice, "GET", "/c", &[]).unwrap().index, 1);
    // The prefix of every path is no longer than no prefix at all.
    let roots = table(vec![rule(vec![]), rule(vec![at(prefix("/"))])]);
    assert_eq!(find(&roots, "GET", "/", &[]).unwrap().index, 0);
}

#[test]
fn paths_match_as_received() {
    for (path, request, want) in [
        (prefix("/v2"), "/v2", true),
        (prefix("/v2"), "/v2/", true),
        (prefix("/v2/"), "/v2", true),
        (prefix("/v2"), "/v2/x", true),
        (prefix("/v2"), "/v2example", false),
        (prefix("/v2"), "/foo/v2", false),
        (prefix("/v2"), "/V2", false),
        (prefix("/v2"), "//v2", false),
        (prefix("/v2"), "/%762", false),
        (prefix("/v2"), "/v2%2Fx", false),
        (prefix("/v2"), "/x/../v2", false),
        (prefix("/"), "/anything", true),
        (prefix("/"), "*", true),
        (prefix("/"), "", true),
        (prefix("/v2"), "*", false),
        (exact("/v2"), "/v2", true),
        (exact("/v2"), "/v2/", false),
        (exact("/v2/"), "/v2/", true),
        (exact("/a%20b"), "/a%20b", true),
        (exact("/a%20b"), "/a+b", false),
    ] {
        let table = table(vec![rule(vec![at(path.clone())])]);
        assert_eq!(find(&table, "GET", request, &[]).is_some(), want, "{path:?} {request}");
    }
}

#[test]
fn headers_match_by_their_joined_value() {
    for (lines, want) in [
        (&[("Version", "one")][..], true),
        (&[("VERSION", "one"), ("x", "y")], true),
        (&[("version", "One")], false),
        (&[("version", "one,two")], false),
        (&[("version", "one"), ("version", "two")], false),
        (&[("version", "")], false),
        (&[], false),
    ] {
        let table = table(vec![rule(vec![headers(&[("version", "one")])])]);
        assert_eq!(find(&table, "GET", "/", lines).is_some(), want, "{lines:?}");
    }
    let joined = table(vec![rule(vec![headers(&[("version", "one,two")])])]);
    for (lines, want) in [
        (&[("version", "one"), ("version", "two")][..], true),
        (&[("version", "one,two")], true),
        (&[("version", "two"), ("version", "one")], false),
        (&[("version", "one"), ("version", "two"), ("version", "")], false),
        (&[("version", "one")], false),
    ] {
        assert_eq!(find(&joined, "GET", "/", lines).is_some(), want, "{lines:?}");
    }
    // Of equal names the first counts, whatever the others say.
    let repeated = table(vec![rule(vec![headers(&[("Version", "one"), ("version", "two")])])]);
    assert!(find(&repeated, "GET", "/", &[("version", "one")]).is_some());
}

#[test]
fn parameters_match_decoded_and_the_first_counts() {
    for (wanted, target, want) in [
        (("animal", "whale"), "/?animal=whale", true),
        (("animal", "whale"), "/?x=1&animal=whale&y=2", true),
        (("animal", "whale"), "/?animal=whaledolphin", false),
        (("animal", "whale"), "/?animal=dog&animal=whale", false),
        (("animal", "whale"), "/?animal=whale&animal=dog", true),
        (("animal", "whale"), "/?Animal=whale", false),
        (("animal", "whale"), "/?animal=wh%61le", true),
        (("animal", "whale"), "/?%61nimal=whale", true),
        (("animal", "whale"), "/", false),
        (("animal", "blue whale"), "/?animal=blue+whale", true),
        (("animal", "blue whale"), "/?animal=blue%20whale", true),
        (("animal", "a&b=c"), "/?animal=a%26b%3Dc", true),
        (("animal", "a=b"), "/?animal=a=b", true),
        (("animal", "100%"), "/?animal=100%", true),
        (("animal", "%zz"), "/?animal=%zz", true),
        (("flag", ""), "/?flag", true),
        (("flag", ""), "/?flag=", true),
        (("flag", ""), "/?other", false),
    ] {
        let table = table(vec![rule(vec![query(&[wanted])])]);
        assert_eq!(find(&table, "GET", target, &[]).is_some(), want, "{wanted:?} {target}");
    }
}

#[test]
fn everything_a_match_names_must_hold_and_one_match_is_enough() {
    let both = v1::RouteMatch {
        path: Some(prefix("/path4")),
        method: "POST".into(),
        headers: vec![pair("version", "three")],
        query: vec![pair("animal", "kraken")],
    };
    let table = table(vec![rule(vec![at(exact("/path3")), both])]);
    let three = [("version", "three")];
    for (method, target, lines, want) in [
        ("GET", "/path3", &[][..], true),
        ("POST", "/path4?animal=kraken", &three, true),
        ("GET", "/path4?animal=kraken", &three, false),
        ("POST", "/path4?animal=kraken", &[], false),
        ("POST", "/path4", &three, false),
        ("POST", "/?animal=kraken", &three, false),
        ("post", "/path4?animal=kraken", &three, false),
    ] {
        let found = find(&table, method, target, lines).is_some();
        assert_eq!(found, want, "{method} {target} {lines:?}");
    }
    let nothing = RouteTable::try_from(v1::Route::default()).unwrap();
    assert!(find(&nothing, "GET", "/", &[]).is_none());
}

#[test]
fn a_decision_says_what_made_it() {
    let matched = v1::RouteMatch {
        path: Some(prefix("/v2/")),
        method: "GET".into(),
        headers: vec![pair("Version", "one")],
        query: vec![pair("q", "1")],
    };
    let table = table(vec![rule(vec![matched]), rule(vec![at(exact("/x"))]), rule(vec![])]);
    let lines = [("version", "one")];
    for (target, want) in [
        (
            "/v2/a?q=1",
            "HTTPRoute/shop/web[0] by path prefix /v2, method GET, header version, query parameter q",
        ),
        ("/x", "HTTPRoute/shop/web[1] by path /x"),
        ("/", "HTTPRoute/shop/web[2] by path prefix /"),
    ] {
        assert_eq!(find(&table, "GET", target, &lines).unwrap().to_string(), want);
    }
}

/// Gateway API's own table, HTTPPathModifier.replacePrefixMatch, and what it leaves out.
#[test]
fn prefixes_are_replaced_by_whole_segments() {
    for (request, matched, replacement, want) in [
        ("/foo/bar", "/foo", "/xyz", "/xyz/bar"),
        ("/foo/bar", "/foo", "/xyz/", "/xyz/bar"),
        ("/foo/bar", "/foo/", "/xyz", "/xyz/bar"),
        ("/foo/bar", "/foo/", "/xyz/", "/xyz/bar"),
        ("/foo", "/foo", "/xyz", "/xyz"),
        ("/foo/", "/foo", "/xyz", "/xyz/"),
        ("/foo/bar", "/foo", "", "/bar"),
        ("/foo/", "/foo", "", "/"),
        ("/foo", "/foo", "", "/"),
        ("/foo/", "/foo", "/", "/"),
        ("/foo", "/foo", "/", "/"),
        ("/foo/bar", "/", "/xyz", "/xyz/foo/bar"),
        ("/", "/", "/xyz", "/xyz/"),
        ("/", "/", "/", "/"),
        ("/foo/a%2Fb", "/foo", "/xyz", "/xyz/a%2Fb"),
        ("/foo//b", "/foo", "/xyz", "/xyz//b"),
        ("/foo/...", "/foo", "/xyz", "/xyz/..."),
        ("*", "/", "/xyz", "*"),
        ("", "/", "/xyz", ""),
    ] {
        let table = table(vec![v1::RouteRule {
            filters: vec![rewrite("", v1::path_rewrite::Path::Prefix(replacement.into()))],
            ..rule(vec![at(prefix(matched))])
        }]);
        let found = find(&table, "GET", request, &[]).unwrap();
        let rewrite = found.rule.changes.path.as_ref().unwrap();
        let rewritten = found.rewrite(rewrite, request);
        assert_eq!(rewritten.as_deref(), Ok(want), "{request} {matched} {replacement}");
    }
}

#[test]
fn a_path_does_not_walk_out_of_the_prefix_it_is_given() {
    let table = table(vec![v1::RouteRule {
        filters: vec![rewrite("", v1::path_rewrite::Path::Prefix("/public".into()))],
        ..rule(vec![at(prefix("/a"))])
    }]);
    for path in [
        "/a/..",
        "/a/../b",
        "/a/./b",
        "/a/%2e%2E/b",
        "/a/.%2e",
        "/a/x%2f..%2Fb",
        "/a/..%5cb",
        "/a/..\\b",
        "/a/..;x/b",
        "/a/..%3bx",
        "/a/x/.",
    ] {
        let found = find(&table, "GET", path, &[]).unwrap();
        let rewrite = found.rule.changes.path.as_ref().unwrap();
        assert_eq!(found.rewrite(rewrite, path), Err(DotSegment), "{path}");
        assert_eq!(found.rewrite(&PathRewrite::Full("/x".into()), path).as_deref(), Ok("/x"));
    }
}

fn rewrite(hostname: &str, path: v1::path_rewrite::Path) -> v1::RouteFilter {
    let path = Some(v1::PathRewrite { path: Some(path) });
    filter(v1::route_filter::Filter::Rewrite(v1::Rewrite { hostname: hostname.into(), path }))
}

fn filter(filter: v1::route_filter::Filter) -> v1::RouteFilter {
    v1::RouteFilter { filter: Some(filter) }
}

fn redirect(redirect: v1::Redirect) -> v1::RouteFilter {
    filter(v1::route_filter::Filter::Redirect(redirect))
}

#[test]
fn a_location_keeps_what_is_not_replaced() {
    use v1::path_rewrite::Path;
    let path = |path| Some(v1::PathRewrite { path: Some(path) });
    let given = |scheme: &str, hostname: &str, port| v1::Redirect {
        scheme: scheme.into(),
        hostname: hostname.into(),
        port,
        status: 302,
        path: None,
    };
    for (redirected, authority, dialled, target, want) in [
        (given("", "", 0), "echo", 80, "/x?y=1", "http://echo/x?y=1"),
        (given("", "", 0), "echo:80", 80, "/x", "http://echo/x"),
        (given("", "", 0), "echo", 8080, "/x", "http://echo:8080/x"),
        (given("", "", 0), "echo:9", 8080, "/x", "http://echo:8080/x"),
        (given("", "", 8083), "echo", 80, "/x", "http://echo:8083/x"),
        (given("", "example.org", 0), "echo", 80, "/x", "http://example.org/x"),
        (given("", "example.org", 8083), "echo", 80, "/x", "http://example.org:8083/x"),
        (given("https", "", 0), "echo", 8080, "/x", "https://echo/x"),
        (given("http", "", 0), "echo", 8080, "/x", "http://echo/x"),
        (given("https", "", 80), "echo", 80, "/x", "https://echo:80/x"),
        (given("https", "", 443), "echo", 80, "/x", "https://echo/x"),
        (given("http", "", 443), "echo", 80, "/x", "http://echo:443/x"),
        (given("", "", 80), "echo", 8080, "/x", "http://echo/x"),
        (given("", "", 0), "[::1]", 8080, "/x", "http://[::1]:8080/x"),
        (given("", "", 0), "[::1]:8080", 8080, "/x", "http://[::1]:8080/x"),
        (given("", "", 0), "echo", 80, "*", "http://echo/"),
        (given("", "", 0), "echo", 80, "/?", "http://echo/?"),
        (
            v1::Redirect { path: path(Path::Full("/full".into())), ..given("", "", 0) },
            "echo",
            80,
            "/x/y?z",
            "http://echo/full?z",
        ),
        (
            v1::Redirect { path: path(Path::Prefix("/new".into())), ..given("", "", 0) },
            "echo",
            80,
            "/x/y",
            "http://echo/new/x/y",
        ),
    ] {
        let table = table(vec![v1::RouteRule {
            filters: vec![redirect(redirected)],
            ..rule(vec![at(prefix("/"))])
        }]);
        let found = find(&table, "GET", target, &[]).unwrap();
        let Course::Redirect(redirect, _) = found.rule.draw(0) else { panic!("a redirect") };
        let (path, query) = target.split_once('?').map_or((target, None), |(p, q)| (p, Some(q)));
        let called = Called { authority, port: dialled, path, query };
        assert_eq!(found.location(redirect, &called).as_deref(), Ok(want));
    }
}

fn modifier(set: &[(&str, &str)], add: &[(&str, &str)], remove: &[&str]) -> v1::HeaderModifier {
    let pairs = |list: &[(&str, &str)]| list.iter().map(|(n, v)| pair(n, v)).collect();
    v1::HeaderModifier {
        set: pairs(set),
        add: pairs(add),
        remove: remove.iter().map(ToString::to_string).collect(),
    }
}

fn on_request(modifier: v1::HeaderModifier) -> v1::RouteFilter {
    filter(v1::route_filter::Filter::RequestHeaders(modifier))
}

fn on_response(modifier: v1::HeaderModifier) -> v1::RouteFilter {
    filter(v1::route_filter::Filter::ResponseHeaders(modifier))
}

/// `name`, whether what is there stays, and what comes behind it.
fn shown(edits: &[HeaderEdit]) -> Vec<String> {
    let value = |value: &[u8]| String::from_utf8_lossy(value).into_owned();
    let mut shown: Vec<_> = edits
        .iter()
        .map(|edit| {
            let values: Vec<_> = edit.values.iter().map(|bytes| value(bytes)).collect();
            format!("{}{}{}", edit.name, if edit.keep { "+" } else { "=" }, values.join("|"))
        })
        .collect();
    shown.sort();
    shown
}

#[test]
fn edits_are_remove_then_set_then_add_and_the_backends_follow_the_rules() {
    let rule_filters = vec![
        on_request(modifier(
            &[("X-Set", "rule"), ("x-set", "ignored"), ("x-both", "set")],
            &[("X-Add", " rule "), ("x-both", "added"), ("x-gone", "new")],
            &["X-Gone"],
        )),
        on_response(modifier(&[("x-from", "rule")], &[("x-list", "rule")], &[])),
    ];
    let own = vec![
        on_request(modifier(&[("x-set", "backend")], &[("x-add", "backend")], &["x-both"])),
        on_response(modifier(&[("x-from", "backend")], &[("x-list", "backend")], &["x-old"])),
    ];
    let table = table(vec![v1::RouteRule {
        filters: rule_filters,
        backends: vec![
            backend("shop/a", 1),
            v1::RouteBackend { filters: own, ..backend("shop/b", 1) },
        ],
        ..rule(vec![])
    }]);
    let [a, b] = table.rules()[0].backends() else { panic!("two backends") };
    assert_eq!(
        shown(&a.changes.request),
        ["x-add+rule", "x-both=set|added", "x-gone=new", "x-set=rule"]
    );
    assert_eq!(
        shown(&b.changes.request),
        ["x-add+rule|backend", "x-both=", "x-gone=new", "x-set=backend"]
    );
    // On the way back the rule has the last word.
    assert_eq!(shown(&a.changes.response), ["x-from=rule", "x-list+rule"]);
    assert_eq!(shown(&b.changes.response), ["x-from=rule", "x-list+backend|rule", "x-old="]);
}

#[test]
fn a_backends_rewrite_takes_the_place_of_the_rules() {
    use v1::path_rewrite::Path;
    let own = filter(v1::route_filter::Filter::Rewrite(v1::Rewrite {
        hostname: String::new(),
        path: Some(v1::PathRewrite { path: Some(Path::Full("/own".into())) }),
    }));
    let table = table(vec![v1::RouteRule {
        filters: vec![rewrite("rule.example", Path::Full("/rule".into()))],
        backends: vec![
            backend("shop/a", 1),
            v1::RouteBackend { filters: vec![own], ..backend("shop/b", 1) },
        ],
        ..rule(vec![])
    }]);
    let rewrites = table.rules()[0].backends().iter().map(|backend| {
        let changes = &backend.changes;
        (changes.host.as_deref(), changes.path.clone())
    });
    let full = |path: &str| Some(PathRewrite::Full(path.into()));
    assert_eq!(
        rewrites.collect::<Vec<_>>(),
        [(Some("rule.example"), full("/rule")), (Some("rule.example"), full("/own"))]
    );
}

#[test]
fn a_draw_answers_what_cannot_be_sent() {
    let invalid = v1::RouteBackend { invalid: true, weight: 1, ..v1::RouteBackend::default() };
    let own = v1::RouteBackend {
        filters: vec![redirect(v1::Redirect { status: 307, ..v1::Redirect::default() })],
        ..backend("shop/a", 1)
    };
    for (backends, random, want) in [
        (vec![], 0, Course::NoBackend),
        (vec![backend("shop/a", 0), backend("shop/b", 0)], u64::MAX, Course::NoBackend),
        (vec![backend("shop/a", 1)], u64::MAX, Course::Backend(0)),
        (vec![backend("shop/a", 1), invalid.clone()], 0, Course::Backend(0)),
        (vec![backend("shop/a", 1), invalid], u64::MAX, Course::Invalid(1)),
    ] {
        let table = table(vec![v1::RouteRule { backends, ..rule(vec![]) }]);
        assert_eq!(table.rules()[0].draw(random), want);
    }
    let table = table(vec![v1::RouteRule { backends: vec![own], ..rule(vec![]) }]);
    assert!(matches!(table.rules()[0].draw(0), Course::Redirect(r, _) if r.status == 307));
}

#[test]
fn timeouts_override_field_by_field() {
    let base = Arc::new(TrafficPolicy {
        request_timeout: Some(Duration::from_secs(9)),
        per_try_timeout: Some(Duration::from_secs(3)),
        ..TrafficPolicy::built_in()
    });
    let seconds = |s| Some(Duration::from_secs(s));
    for (request, attempt, want) in [
        (None, None, (seconds(9), seconds(3), None)),
        (Some(1000), None, (seconds(1), seconds(3), None)),
        (None, Some(2000), (seconds(9), None, seconds(2))),
        (Some(0), Some(0), (None, None, None)),
    ] {
        let table = table(vec![v1::RouteRule {
            request_timeout_ms: request,
            backend_timeout_ms: attempt,
            ..rule(vec![])
        }]);
        let policy = table.rules()[0].overlay(&base);
        let got = (policy.request_timeout, policy.per_try_timeout, policy.attempt_timeout);
        assert_eq!(got, want);
        let untouched = request.is_none() && attempt.is_none();
        assert_eq!(Arc::ptr_eq(&policy, &base), untouched, "nothing is copied for nothing");
    }
}

/// Each rule is refused with the path it stands beside.
fn refused(rules: impl IntoIterator<Item = (&'static str, v1::RouteRule)>) {
    for (path, rule) in rules {
        assert_eq!(rejected(rule.clone()), path, "{rule:?}");
        let alone = check(rule).unwrap_err().path;
        assert_eq!(format!("rules[0].{alone}"), path);
    }
}

fn filtered(filter: v1::RouteFilter) -> v1::RouteRule {
    v1::RouteRule { filters: vec![filter], ..rule(vec![]) }
}

#[test]
fn a_wrong_match_is_named() {
    let matched = |matched| rule(vec![matched]);
    refused([
        ("rules[0].source", v1::RouteRule::default()),
        ("rules[0].matches[0].path.match", matched(at(prefix("a")))),
        ("rules[0].matches[0].path.match", matched(at(exact("/a/../b")))),
        ("rules[0].matches[0].path.match", matched(at(v1::PathMatch::default()))),
        ("rules[0].matches[0].method", matched(method("GET POST"))),
        ("rules[0].matches[0].headers[0].name", matched(headers(&[(":path", "/")]))),
        ("rules[0].matches[0].headers[0].name", matched(headers(&[("Heddle-Client-Id", "x")]))),
        ("rules[0].matches[0].query[0].name", matched(query(&[("", "x")]))),
    ]);
    let many = v1::Route { rules: vec![rule(vec![]); MAX_RULES + 1] };
    assert_eq!(RouteTable::try_from(many).unwrap_err().path, "rules");
    let each = v1::RouteRule { ..rule(vec![v1::RouteMatch::default(); 64]) };
    let many = v1::Route { rules: vec![each; MAX_MATCHES / 64 + 1] };
    assert_eq!(RouteTable::try_from(many).unwrap_err().path, "rules[64].matches");
}

#[test]
fn a_wrong_filter_is_named() {
    use v1::path_rewrite::Path;
    let set = |name: &str, value: &str| filtered(on_request(modifier(&[(name, value)], &[], &[])));
    let redirected = |r: v1::Redirect| filtered(redirect(r));
    let full = |path: &str| filtered(rewrite("", Path::Full(path.into())));
    refused([
        ("rules[0].filters[0]", filtered(v1::RouteFilter::default())),
        ("rules[0].filters[0].request_headers.set[0].name", set("a b", "x")),
        ("rules[0].filters[0].request_headers.set[0].name", set("Host", "x")),
        ("rules[0].filters[0].request_headers.set[0].name", set("heddle-error", "x")),
        ("rules[0].filters[0].request_headers.set[0].name", set("HEDDLE_Error", "x")),
        ("rules[0].filters[0].request_headers.set[0].name", set("content_length", "1")),
        ("rules[0].filters[0].request_headers.set[0].name", set("transfer-encoding", "x")),
        ("rules[0].filters[0].request_headers.set[0].value", set("x", "a\r\nb: c")),
        (
            "rules[0].filters[0].response_headers.remove[0]",
            filtered(on_response(modifier(&[], &[], &["Connection"]))),
        ),
        ("rules[0].filters[0].redirect.status", redirected(v1::Redirect::default())),
        (
            "rules[0].filters[0].redirect.scheme",
            redirected(v1::Redirect { scheme: "ftp".into(), status: 302, ..Default::default() }),
        ),
        (
            "rules[0].filters[0].redirect.hostname",
            redirected(v1::Redirect { hostname: "a b".into(), status: 302, ..Default::default() }),
        ),
        (
            "rules[0].filters[0].redirect.port",
            redirected(v1::Redirect { port: 65_536, status: 302, ..Default::default() }),
        ),
        ("rules[0].filters[0].rewrite.path", full("no-slash")),
        ("rules[0].filters[0].rewrite.path", full("/a?b")),
        ("rules[0].filters[0].rewrite.path", full("/a/../b")),
        ("rules[0].filters[0].rewrite.path", full("/\u{e4}")),
        ("rules[0].filters[0].rewrite.path", full("/a\r\nb")),
    ]);
}

#[test]
fn what_does_not_go_together_is_named() {
    use v1::path_rewrite::Path;
    let backed = |backend| v1::RouteRule { backends: vec![backend], ..rule(vec![]) };
    let redirected = |r: v1::Redirect| filtered(redirect(r));
    refused([
        (
            "rules[0].matches",
            v1::RouteRule {
                filters: vec![rewrite("", Path::Prefix("/x".into()))],
                ..rule(vec![at(prefix("/a")), at(exact("/b"))])
            },
        ),
        (
            "rules[0].filters",
            v1::RouteRule {
                filters: vec![
                    rewrite("", Path::Full("/x".into())),
                    redirect(v1::Redirect { status: 302, ..Default::default() }),
                ],
                ..rule(vec![])
            },
        ),
        (
            "rules[0].filters",
            v1::RouteRule {
                filters: vec![
                    on_response(modifier(&[("Location", "/x")], &[], &[])),
                    redirect(v1::Redirect { status: 302, ..Default::default() }),
                ],
                ..rule(vec![])
            },
        ),
        ("rules[0].backends[0].service", backed(backend("", 1))),
        ("rules[0].backends[0].weight", backed(backend("shop/a", MAX_WEIGHT + 1))),
        ("rules[0].backends[0].port", backed(v1::RouteBackend { port: 0, ..backend("a/b", 1) })),
        (
            "rules[0].backends[0].filters[0].request_headers.remove[0]",
            backed(v1::RouteBackend {
                filters: vec![on_request(modifier(&[], &[], &["te"]))],
                ..backend("a/b", 1)
            }),
        ),
        (
            "rules[0].backends",
            v1::RouteRule {
                backends: vec![backend("a/b", 1)],
                ..redirected(v1::Redirect { status: 302, ..Default::default() })
            },
        ),
    ]);
}

/// Few enough values for most requests to meet several rules.
fn any_match() -> impl Strategy<Value = v1::RouteMatch> {
    let path = prop_oneof![
        Just(None),
        prop::sample::select(vec!["/", "/a", "/a/", "/a/b", "/b"]).prop_map(|p| Some(prefix(p))),
        prop::sample::select(vec!["/", "/a", "/a/b"]).prop_map(|p| Some(exact(p))),
    ];
    let method = prop::sample::select(vec!["", "GET", "POST"]);
    let pairs = || prop::sample::subsequence(vec![("x", "1"), ("y", "1"), ("z", "1")], 0..=3);
    (path, method, pairs(), pairs()).prop_map(|(path, method, headers, query)| v1::RouteMatch {
        path,
        method: method.into(),
        headers: headers.iter().map(|(n, v)| pair(n, v)).collect(),
        query: query.iter().map(|(n, v)| pair(n, v)).collect(),
    })
}

type AnyRequest = (&'static str, &'static str, Vec<(&'static str, &'static str)>);

fn any_request() -> impl Strategy<Value = AnyRequest> {
    (
        prop::sample::select(vec!["GET", "POST"]),
        prop::sample::select(vec!["/", "/a?x=1&y=1&z=1", "/a/b?y=1", "/a/b/c?x=1&z=1", "/c"]),
        prop::sample::subsequence(vec![("x", "1"), ("y", "1"), ("z", "1")], 0..=3),
    )
}

proptest! {
    /// The winner is the first, in the order of the list, of the most specific matches that hold:
    /// the definition itself, without an order made beforehand.
    #[test]
    fn the_winner_is_the_greatest_that_holds(
        rules in prop::collection::vec(prop::collection::vec(any_match(), 0..4), 0..8),
        (method, target, lines) in any_request(),
    ) {
        let table = table(rules.iter().cloned().map(rule).collect());
        let (path, query) = target.split_once('?').map_or((target, None), |(p, q)| (p, Some(q)));
        let request = Request { method, path, query, fields: &Lines(&lines) };
        let mut best: Option<(usize, matching::Specificity)> = None;
        for (index, matches) in rules.iter().enumerate() {
            let everything = [v1::RouteMatch::default()];
            let matches = if matches.is_empty() { &everything[..] } else { matches };
            for matched in matches {
                let matcher = Matcher::try_from(matched.clone()).unwrap();
                let key = matcher.specificity();
                if matcher.matches(&request) && best.is_none_or(|(_, best)| key > best) {
                    best = Some((index, key));
                }
            }
        }
        prop_assert_eq!(table.find(&request).map(|f| f.index), best.map(|(index, _)| index));
    }

    /// Where specificity decides, the order of the list does not.
    #[test]
    fn the_list_matters_among_equals_only(
        matches in prop::collection::vec(any_match(), 1..8),
        order in Just((0..8_usize).collect::<Vec<_>>()).prop_shuffle(),
        (method, target, lines) in any_request(),
    ) {
        let mut unlike: Vec<v1::RouteMatch> = Vec::new();
        for matched in matches {
            let key = |m: &v1::RouteMatch| Matcher::try_from(m.clone()).unwrap().specificity();
            if unlike.iter().all(|other| key(other) != key(&matched)) {
                unlike.push(matched);
            }
        }
        let winner = |list: &[v1::RouteMatch]| {
            let table = table(list.iter().map(|m| rule(vec![m.clone()])).collect());
            find(&table, method, target, &lines).map(|found| list[found.index].clone())
        };
        let shuffled: Vec<_> = order.iter().filter_map(|at| unlike.get(*at).cloned()).collect();
        prop_assert_eq!(shuffled.len(), unlike.len());
        prop_assert_eq!(winner(&unlike), winner(&shuffled));
    }

    /// Every backend, valid or not, gets its share of the number line.
    #[test]
    fn shares_follow_the_weights(weights in prop::collection::vec((0_u32..1000, any::<bool>()), 1..8)) {
        let backends = weights
            .iter()
            .map(|(weight, invalid)| v1::RouteBackend { invalid: *invalid, ..backend("a/b", *weight) })
            .collect();
        let table = table(vec![v1::RouteRule { backends, ..rule(vec![]) }]);
        let total: u64 = weights.iter().map(|(weight, _)| u64::from(*weight)).sum();
        let n = 20_000_u64;
        let mut counts = vec![0_u64; weights.len()];
        for i in 0..n {
            match table.rules()[0].draw(i * (u64::MAX / n)) {
                Course::Backend(at) => {
                    prop_assert!(!weights[at].1);
                    counts[at] += 1;
                }
                Course::Invalid(at) => {
                    prop_assert!(weights[at].1);
                    counts[at] += 1;
                }
                Course::NoBackend => prop_assert_eq!(total, 0),
                Course::Redirect(..) => prop_assert!(false, "nobody redirects here"),
            }
        }
        for (count, (weight, _)) in counts.iter().zip(&weights) {
            let want = (n * u64::from(*weight)).checked_div(total).unwrap_or(0);
            prop_assert!(count.abs_diff(want) <= 1, "{counts:?} for {weights:?}");
        }
    }
}
