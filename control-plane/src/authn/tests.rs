//! Tokens and certificates, each wrong in one way.

use std::time::Duration;

use rcgen::{CertificateParams, KeyPair, SanType};

use super::*;
use crate::fixture;

const KEY: &[u8] = b"0123456789abcdef0123456789abcdef";
const NOW: u64 = 1_795_000_000;

fn claims() -> Claims {
    Claims {
        namespace: "shop".to_owned(),
        pod: "web-1".to_owned(),
        uid: "web-1-uid".to_owned(),
        exp: NOW + 600,
    }
}

fn verify(token: &str, peer: &str) -> Result<SpiffeId, Refusal> {
    let pods = [
        fixture::pod("web-1", "web", &["10.0.0.1", "fd00::1"]),
        fixture::pod("db-0", "db", &["10.0.0.2"]),
    ];
    let catalog = fixture::catalog(1, &pods, &[]);
    let now = UNIX_EPOCH + Duration::from_secs(NOW);
    verify_token(KEY, token, peer.parse().unwrap(), now, &catalog).map(|pod| pod.identity.clone())
}

#[test]
fn a_token_proves_its_pod_from_each_of_its_addresses() {
    let token = mint_token(KEY, &claims());
    for peer in ["10.0.0.1", "::ffff:10.0.0.1", "fd00::1"] {
        assert_eq!(verify(&token, peer), Ok(fixture::identity("web")), "{peer}");
    }
}

#[test]
fn everything_else_is_refused_for_its_own_reason() {
    let good = mint_token(KEY, &claims());
    let with = |change: &dyn Fn(&mut Claims)| {
        let mut claims = claims();
        change(&mut claims);
        mint_token(KEY, &claims)
    };
    let raw = |payload: &str| {
        let signed = format!("heddle1.{}", URL_SAFE_NO_PAD.encode(payload));
        let mac = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, KEY), signed.as_bytes());
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(mac))
    };
    let another_key = mint_token(b"another key, another key, another", &claims());
    let mut flipped = good.clone().into_bytes();
    flipped[12] ^= 1;
    let flipped = String::from_utf8(flipped).unwrap();
    let (signed, mac) = good.rsplit_once('.').unwrap();
    for (name, token, peer, want) in [
        ("no token", String::new(), "10.0.0.1", Refusal::TokenMissing),
        ("no structure", "hello".to_owned(), "10.0.0.1", Refusal::TokenMalformed),
        (
            "another version",
            good.replace("heddle1", "heddle2"),
            "10.0.0.1",
            Refusal::TokenMalformed,
        ),
        ("no MAC", signed.to_owned(), "10.0.0.1", Refusal::TokenMalformed),
        ("an empty MAC", format!("{signed}."), "10.0.0.1", Refusal::TokenForged),
        ("a short MAC", format!("{signed}.{}", &mac[..20]), "10.0.0.1", Refusal::TokenForged),
        ("a padded MAC", format!("{good}="), "10.0.0.1", Refusal::TokenMalformed),
        (
            "too long",
            format!("heddle1.{}", "a".repeat(TOKEN_LIMIT)),
            "10.0.0.1",
            Refusal::TokenMalformed,
        ),
        ("another payload", flipped, "10.0.0.1", Refusal::TokenForged),
        ("another key", another_key, "10.0.0.1", Refusal::TokenForged),
        ("no JSON", raw("x"), "10.0.0.1", Refusal::TokenMalformed),
        (
            "an unknown claim",
            raw(r#"{"namespace":"shop","pod":"web-1","uid":"web-1-uid","exp":9999999999,"x":1}"#),
            "10.0.0.1",
            Refusal::TokenMalformed,
        ),
        ("expired", with(&|claims| claims.exp = NOW), "10.0.0.1", Refusal::TokenExpired),
        (
            "no such pod",
            with(&|claims| claims.pod = "web-9".into()),
            "10.0.0.1",
            Refusal::PodUnknown,
        ),
        (
            "an earlier pod",
            with(&|claims| claims.uid = "old".into()),
            "10.0.0.1",
            Refusal::PodReplaced,
        ),
        ("another pod's address", good.clone(), "10.0.0.2", Refusal::OtherAddress),
        ("nobody's address", good.clone(), "127.0.0.1", Refusal::OtherAddress),
    ] {
        assert_eq!(verify(&token, peer), Err(want), "{name}");
    }
}

#[test]
fn every_refusal_has_its_own_label_and_a_status() {
    use Refusal::*;
    let all = [
        TokenMissing,
        TokenMalformed,
        TokenForged,
        TokenExpired,
        KeyMissing,
        TokenUnreadable,
        TokenAudience,
        TokenInvalid,
        TokenRevoked,
        TokenNotBound,
        ReviewUnavailable,
        TooManyAttempts,
        PodNotSeen,
        PodWithoutAddress,
        OtherServiceAccount,
        PodUnknown,
        PodReplaced,
        OtherAddress,
        CertificateMissing,
        CertificateName,
        OtherIdentity,
    ];
    let labels: std::collections::HashSet<_> = all.iter().map(|refusal| refusal.reason()).collect();
    assert_eq!(labels.len(), all.len());
    assert_eq!(Status::from(TokenForged).code(), tonic::Code::Unauthenticated);
    assert_eq!(Status::from(OtherAddress).code(), tonic::Code::PermissionDenied);
    // A proxy that is only too early is not told that it may not.
    for early in [ReviewUnavailable, PodNotSeen, PodWithoutAddress, KeyMissing] {
        assert_eq!(Status::from(early).code(), tonic::Code::Unavailable);
    }
}

#[test]
fn a_stream_speaks_for_a_pod_of_its_certificates_workload() {
    let catalog = fixture::catalog(1, &[fixture::pod("web-1", "web", &["10.0.0.1"])], &[]);
    let check = |name: &str, account: &str, peer: &str, want: Result<(), Refusal>| {
        let identity = fixture::identity(account);
        let got = verify_stream(&catalog, "shop", name, &identity, peer.parse().unwrap());
        assert_eq!(got.map(|_| ()), want, "{name} {account} {peer}");
    };
    check("web-1", "web", "10.0.0.1", Ok(()));
    check("web-2", "web", "10.0.0.1", Err(Refusal::PodUnknown));
    check("web-1", "db", "10.0.0.1", Err(Refusal::OtherIdentity));
    check("web-1", "web", "10.0.0.9", Err(Refusal::OtherAddress));
}

#[test]
fn an_identity_is_exactly_one_uri_name() {
    let uri = |text: &str| SanType::URI(text.try_into().unwrap());
    let dns = SanType::DnsName("web.shop".try_into().unwrap());
    let good = "spiffe://cluster.local/ns/shop/sa/web";
    let check = |names: Vec<SanType>, want: Result<SpiffeId, Refusal>| {
        let mut params = CertificateParams::default();
        params.subject_alt_names = names;
        let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        assert_eq!(parse_identity(certificate.der()), want);
    };
    check(vec![uri(good)], Ok(fixture::identity("web")));
    check(vec![], Err(Refusal::CertificateName));
    check(vec![dns.clone()], Err(Refusal::CertificateName));
    check(vec![uri(good), dns], Err(Refusal::CertificateName));
    check(vec![uri(good), uri(good)], Err(Refusal::CertificateName));
    check(vec![uri("https://cluster.local/ns/shop/sa/web")], Err(Refusal::CertificateName));
    check(vec![uri("spiffe://cluster.local/ns/shop/sa/web%00")], Err(Refusal::CertificateName));
    assert_eq!(parse_identity(&CertificateDer::from(vec![1, 2])), Err(Refusal::CertificateName));
}
