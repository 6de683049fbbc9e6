//! Reviews and claims, each wrong in one way.

use serde_json::{Value, json};

use super::*;
use crate::fixture;

const NOW: u64 = 1_795_000_000;

fn payload() -> Value {
    json!({
        "aud": ["heddle"],
        "exp": NOW + 600,
        "sub": "system:serviceaccount:shop:web",
        "kubernetes.io": {
            "namespace": "shop",
            "node": { "name": "n1", "uid": "n1-uid" },
            "pod": { "name": "web-1", "uid": "web-1-uid" },
            "serviceaccount": { "name": "web", "uid": "sa-uid" },
        },
    })
}

fn token(payload: &Value) -> String {
    format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(payload.to_string()))
}

fn status() -> Value {
    json!({
        "authenticated": true,
        "audiences": ["heddle"],
        "user": {
            "username": "system:serviceaccount:shop:web",
            "extra": { POD_NAME: ["web-1"], POD_UID: ["web-1-uid"] },
        },
    })
}

fn bearer() -> Bearer {
    let [namespace, service_account, pod, uid] =
        ["shop", "web", "web-1", "web-1-uid"].map(str::to_owned);
    Bearer { namespace, service_account, pod, uid }
}

#[test]
fn a_token_says_whose_it_is() {
    assert_eq!(read_claims(&token(&payload())).unwrap().1, bearer());
    let mut alone = payload();
    alone["aud"] = json!("heddle");
    assert_eq!(read_claims(&token(&alone)).unwrap().1, bearer());
}

#[test]
fn tokens_that_no_review_could_make_good() {
    let with = |change: &dyn Fn(&mut Value)| {
        let mut payload = payload();
        change(&mut payload);
        token(&payload)
    };
    let good = token(&payload());
    for (name, token, want) in [
        ("none", String::new(), Refusal::TokenMissing),
        ("two parts", "a.b".to_owned(), Refusal::TokenUnreadable),
        ("four parts", format!("{good}.x"), Refusal::TokenUnreadable),
        ("no base64", "a.!.c".to_owned(), Refusal::TokenUnreadable),
        ("no JSON", "a.e3g.c".to_owned(), Refusal::TokenUnreadable),
        ("too long", good + &"x".repeat(TOKEN_LIMIT), Refusal::TokenUnreadable),
        ("a bootstrap token of the lab", "heddle1.e30.mac".to_owned(), Refusal::TokenAudience),
        ("no audience", with(&|p| p["aud"] = json!([])), Refusal::TokenAudience),
        (
            "the API server's audience",
            with(&|p| p["aud"] = json!(["https://kubernetes.default.svc.cluster.local"])),
            Refusal::TokenAudience,
        ),
        (
            "no pod",
            with(&|p| {
                p["kubernetes.io"].as_object_mut().unwrap().remove("pod");
            }),
            Refusal::TokenNotBound,
        ),
        (
            // What the token controller writes into Secrets: no audience, no end.
            "a legacy token",
            self::token(&json!({
                "iss": "kubernetes/serviceaccount",
                "kubernetes.io/serviceaccount/namespace": "shop",
                "sub": "system:serviceaccount:shop:web",
            })),
            Refusal::TokenAudience,
        ),
    ] {
        assert_eq!(read_claims(&token).map(|_| ()), Err(want), "{name}");
    }
}

fn judged(status: Value, claims: &Claims) -> Result<Bearer, Refusal> {
    judge(&serde_json::from_value(status).unwrap(), claims, NOW)
}

#[test]
fn a_review_proves_a_pod_or_says_why_not() {
    let (claims, _) = read_claims(&token(&payload())).unwrap();
    assert_eq!(judged(status(), &claims), Ok(bearer()));
    let with = |path: &str, value: Value| {
        let mut status = status();
        *status.pointer_mut(path).unwrap() = value;
        status
    };
    let refused = |error: &str| json!({ "authenticated": false, "error": error });
    let key = |key: &str| format!("/user/extra/{}", key.replace('/', "~1"));
    for (name, status, want) in [
        ("empty", json!({}), Refusal::TokenInvalid),
        ("forged", refused("[invalid bearer token]"), Refusal::TokenInvalid),
        (
            "of a deleted pod",
            refused("[invalid bearer token, service account token has been invalidated]"),
            Refusal::TokenRevoked,
        ),
        (
            "of a deleted account",
            refused("service account shop/web has been deleted"),
            Refusal::TokenRevoked,
        ),
        (
            "of an earlier pod",
            refused("pod UID (a) does not match service account pod ref claim (b)"),
            Refusal::TokenRevoked,
        ),
        ("another audience", with("/audiences", json!(["api"])), Refusal::TokenAudience),
        ("no word on audiences", with("/audiences", Value::Null), Refusal::TokenAudience),
        ("nobody", with("/user", Value::Null), Refusal::TokenInvalid),
        ("a person", with("/user/username", json!("admin")), Refusal::TokenNotBound),
        (
            "an account without a namespace",
            with("/user/username", json!("system:serviceaccount:shop")),
            Refusal::TokenNotBound,
        ),
        ("no pod", with("/user/extra", json!({})), Refusal::TokenNotBound),
        ("no pod's uid", with(&key(POD_UID), json!([])), Refusal::TokenNotBound),
        ("two pods", with(&key(POD_NAME), json!(["a", "b"])), Refusal::TokenNotBound),
    ] {
        assert_eq!(judged(status, &claims), Err(want), "{name}");
    }
    let mut past = payload();
    past["exp"] = json!(NOW);
    let (claims, _) = read_claims(&token(&past)).unwrap();
    assert_eq!(judged(refused("[invalid bearer token]"), &claims), Err(Refusal::TokenExpired));
}

#[test]
fn a_bearer_is_a_live_pod_at_its_own_address() {
    let pods = [
        fixture::pod("web-1", "web", &["10.0.0.1", "fd00::1"]),
        fixture::pod("db-0", "db", &["10.0.0.2"]),
        fixture::pod("new-0", "web", &[]),
    ];
    let catalog = fixture::catalog(1, &pods, &[]);
    let with = |change: &dyn Fn(&mut Bearer)| {
        let mut bearer = bearer();
        change(&mut bearer);
        bearer
    };
    let live = Standing::Live(Arc::new(pods[0].clone()));
    for (name, bearer, peer, want) in [
        ("itself", bearer(), "10.0.0.1", live.clone()),
        ("itself, mapped", bearer(), "::ffff:10.0.0.1", live.clone()),
        ("itself over IPv6", bearer(), "fd00::1", live),
        ("elsewhere", bearer(), "10.0.0.2", Standing::Refused(Refusal::OtherAddress)),
        (
            "another account",
            with(&|b| b.service_account = "db".into()),
            "10.0.0.1",
            Standing::Refused(Refusal::OtherServiceAccount),
        ),
        (
            "not seen yet",
            with(&|b| b.pod = "web-2".into()),
            "10.0.0.1",
            Standing::NotYet(Refusal::PodNotSeen),
        ),
        (
            "in another namespace",
            with(&|b| b.namespace = "bank".into()),
            "10.0.0.1",
            Standing::NotYet(Refusal::PodNotSeen),
        ),
        (
            "an earlier pod",
            with(&|b| b.uid = "old".into()),
            "10.0.0.1",
            Standing::NotYet(Refusal::PodReplaced),
        ),
        (
            "no address yet",
            with(&|b| (b.pod, b.uid) = ("new-0".into(), "new-0-uid".into())),
            "10.0.0.3",
            Standing::NotYet(Refusal::PodWithoutAddress),
        ),
    ] {
        assert_eq!(bearer.standing(&catalog, peer.parse().unwrap()), want, "{name}");
    }
}
