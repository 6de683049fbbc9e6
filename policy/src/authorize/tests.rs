//! One policy, one caller, one expected decision per row.

use super::*;

fn rule(
    name: &str,
    action: v1::Action,
    from: Vec<v1::Source>,
    to: Vec<v1::Target>,
) -> v1::Authorization {
    v1::Authorization { name: name.into(), action: action.into(), from, to }
}

fn account(namespace: &str, name: &str) -> v1::Source {
    v1::Source { anyone: false, namespace: namespace.into(), service_account: name.into() }
}

fn anyone() -> v1::Source {
    v1::Source { anyone: true, ..v1::Source::default() }
}

fn to(ports: &[u32], methods: &[&str], prefix: Option<&str>) -> v1::Target {
    v1::Target {
        ports: ports.to_vec(),
        methods: methods.iter().map(ToString::to_string).collect(),
        paths: prefix
            .map(|p| v1::PathMatch { r#match: Some(v1::path_match::Match::Prefix(p.into())) })
            .into_iter()
            .collect(),
    }
}

fn policy(rules: Vec<v1::Authorization>) -> InboundPolicy {
    v1::InboundPolicy {
        namespace: "shop".into(),
        pod: "web".into(),
        default_tls: v1::TlsMode::Strict.into(),
        ports: vec![v1::InboundPort {
            port: 9000,
            tls: v1::TlsMode::Permissive.into(),
            ..v1::InboundPort::default()
        }],
        default_authorization: v1::DefaultAuthorization::AllowAuthenticated.into(),
        authorizations: rules,
        ..v1::InboundPolicy::default()
    }
    .try_into()
    .unwrap()
}

fn id(namespace: &str, name: &str) -> SpiffeId {
    SpiffeId::new("cluster.local", namespace, name).unwrap()
}

const GET: Request<'static> = Request { method: "GET", path: "/a" };

#[test]
fn defaults() {
    let frontend = id("shop", "frontend");
    let policy = policy(vec![]);
    for (peer, port, want) in [
        (Some(&frontend), 80, Decision::Allow(None)),
        (None, 80, Decision::Deny(Denial::Plaintext)),
        (None, 9000, Decision::Allow(None)),
    ] {
        assert_eq!(policy.authorize_request(Caller { peer, port }, GET), want);
        assert_eq!(policy.authorize_opaque(Caller { peer, port }), want);
    }
}

#[test]
fn unspecified_default_authorization_denies() {
    let policy = InboundPolicy::try_from(v1::InboundPolicy {
        default_tls: v1::TlsMode::Permissive.into(),
        ..v1::InboundPolicy::default()
    })
    .unwrap();
    let peer = id("a", "b");
    for peer in [Some(&peer), None] {
        assert_eq!(
            policy.authorize_opaque(Caller { peer, port: 1 }),
            Decision::Deny(Denial::Default)
        );
    }
}

#[test]
fn unspecified_tls_is_not_a_policy() {
    let error = InboundPolicy::try_from(v1::InboundPolicy::default()).unwrap_err();
    assert_eq!(error.path, "default_tls");
}

#[test]
fn an_allow_rule_closes_its_port_only() {
    let policy = policy(vec![rule(
        "allow",
        v1::Action::Allow,
        vec![account("shop", "frontend")],
        vec![to(&[80], &["GET"], Some("/a"))],
    )]);
    let (frontend, other) = (id("shop", "frontend"), id("shop", "other"));
    let ask = |peer, port, method, path| {
        policy.authorize_request(Caller { peer: Some(peer), port }, Request { method, path })
    };
    assert_eq!(ask(&frontend, 80, "GET", "/a/b"), Decision::Allow(Some("allow".into())));
    assert_eq!(ask(&frontend, 80, "POST", "/a"), Decision::Deny(Denial::NoRuleMatched));
    assert_eq!(ask(&frontend, 80, "GET", "/ab"), Decision::Deny(Denial::NoRuleMatched));
    assert_eq!(ask(&frontend, 80, "GET", "/a//b"), Decision::Deny(Denial::AmbiguousPath));
    assert_eq!(ask(&other, 80, "GET", "/a"), Decision::Deny(Denial::NoRuleMatched));
    assert_eq!(ask(&other, 81, "GET", "/a//b"), Decision::Allow(None));
}

#[test]
fn opaque_connections_never_satisfy_http_allows_and_always_meet_http_denies() {
    let frontend = id("shop", "frontend");
    let caller = Caller { peer: Some(&frontend), port: 80 };
    let http_target = || vec![to(&[], &["POST"], None)];
    let allow = policy(vec![rule("allow", v1::Action::Allow, vec![anyone()], http_target())]);
    assert_eq!(allow.authorize_opaque(caller), Decision::Deny(Denial::NoRuleMatched));
    let deny = policy(vec![rule("deny", v1::Action::Deny, vec![anyone()], http_target())]);
    assert_eq!(deny.authorize_opaque(caller), Decision::Deny(Denial::Rule("deny".into())));
    assert_eq!(deny.authorize_request(caller, GET), Decision::Allow(None));
}

#[test]
fn deny_wins_whatever_the_order() {
    let frontend = id("shop", "frontend");
    let caller = Caller { peer: Some(&frontend), port: 80 };
    let allow = || rule("allow", v1::Action::Allow, vec![anyone()], vec![]);
    let deny = || rule("deny", v1::Action::Deny, vec![account("shop", "frontend")], vec![]);
    for rules in [vec![allow(), deny()], vec![deny(), allow()]] {
        assert_eq!(
            policy(rules).authorize_request(caller, GET),
            Decision::Deny(Denial::Rule("deny".into()))
        );
    }
}

#[test]
fn an_empty_source_list_is_nobody_and_plaintext_has_no_identity() {
    let frontend = id("shop", "frontend");
    let nobody = policy(vec![rule("nobody", v1::Action::Allow, vec![], vec![])]);
    assert_eq!(
        nobody.authorize_opaque(Caller { peer: Some(&frontend), port: 80 }),
        Decision::Deny(Denial::NoRuleMatched)
    );
    let namespace = policy(vec![rule("ns", v1::Action::Allow, vec![account("shop", "")], vec![])]);
    assert!(namespace.authorize_opaque(Caller { peer: Some(&frontend), port: 80 }).is_allowed());
    assert_eq!(
        namespace.authorize_opaque(Caller { peer: None, port: 9000 }),
        Decision::Deny(Denial::NoRuleMatched)
    );
}

#[test]
fn rules_that_cannot_be_meant_are_refused() {
    let both = v1::Source { anyone: true, namespace: "a".into(), service_account: String::new() };
    let account_alone = account("", "x");
    for (source, path) in
        [(both, "authorizations[0].from[0]"), (account_alone, "authorizations[0].from[0]")]
    {
        let error = InboundPolicy::try_from(v1::InboundPolicy {
            default_tls: v1::TlsMode::Strict.into(),
            authorizations: vec![rule("r", v1::Action::Allow, vec![source], vec![])],
            ..v1::InboundPolicy::default()
        })
        .unwrap_err();
        assert_eq!(error.path, path);
    }
}
