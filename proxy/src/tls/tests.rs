//! Who is believed: certificates good and bad, and handshakes between two sides.

use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, KeyPair, SanType};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::testing::{Ca, TRUST_DOMAIN, id, key_der, leaf};
use super::*;

const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";

fn with(change: impl FnOnce(&mut CertificateParams)) -> CertificateParams {
    let mut params = leaf(&[WEB]);
    change(&mut params);
    params
}

fn at(offset_secs: i64) -> SystemTime {
    let offset = Duration::from_secs(offset_secs.unsigned_abs());
    if offset_secs < 0 { SystemTime::now() - offset } else { SystemTime::now() + offset }
}

fn verify(bundle: &TrustBundle, leaf: &CertificateDer<'static>, usage: Usage) -> String {
    match bundle.verify(std::slice::from_ref(leaf), usage, UnixTime::now()) {
        Ok(peer) => peer.id.to_string(),
        Err(refusal) => format!("{refusal:?}"),
    }
}

#[test]
fn only_one_good_identity_of_our_mesh_is_accepted() {
    let ca = Ca::new();
    let bundle = ca.bundle();
    for (what, params, want) in [
        ("good", leaf(&[WEB]), WEB),
        ("a DNS name beside it changes nothing", with(add_dns), WEB),
        ("no SAN", leaf(&[]), "NotOneUri(0)"),
        ("two URIs", leaf(&[WEB, "spiffe://cluster.local/ns/shop/sa/admin"]), "NotOneUri(2)"),
        ("the same URI twice", leaf(&[WEB, WEB]), "NotOneUri(2)"),
        ("only a DNS name", with(only_dns), "NotOneUri(0)"),
        ("not SPIFFE", leaf(&["https://cluster.local/ns/shop/sa/web"]), "NotSpiffe(Shape)"),
        ("query", leaf(&["spiffe://cluster.local/ns/shop/sa/web?x"]), "NotSpiffe(ServiceAccount)"),
        ("NUL", leaf(&["spiffe://cluster.local/ns/shop/sa/web\0.evil"]), "NotSpiffe(NotAscii)"),
        (
            "other trust domain",
            leaf(&["spiffe://other/ns/shop/sa/web"]),
            "ForeignTrustDomain(spiffe://other/ns/shop/sa/web)",
        ),
        ("expired", with(|p| p.not_after = at(-1).into()), "Expired"),
        ("not yet valid", with(|p| p.not_before = at(300).into()), "NotYetValid"),
        ("no purpose", with(|p| p.extended_key_usages.clear()), "WrongUsage"),
        ("signs code", with(code_signing), "WrongUsage"),
    ] {
        let issued = ca.sign(&params);
        for usage in [Usage::Server, Usage::Client] {
            assert_eq!(verify(&bundle, &issued.leaf, usage), want, "{what}");
        }
    }
}

fn add_dns(params: &mut CertificateParams) {
    params.subject_alt_names.push(SanType::DnsName("web.shop".try_into().unwrap()));
}

fn only_dns(params: &mut CertificateParams) {
    params.subject_alt_names.clear();
    add_dns(params);
}

fn code_signing(params: &mut CertificateParams) {
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::CodeSigning];
}

#[test]
fn a_client_certificate_does_not_serve() {
    let ca = Ca::new();
    let only_client =
        ca.sign(&with(|p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth]));
    assert_eq!(verify(&ca.bundle(), &only_client.leaf, Usage::Client), WEB);
    assert_eq!(verify(&ca.bundle(), &only_client.leaf, Usage::Server), "WrongUsage");
}

#[test]
fn strangers_chain_to_no_root() {
    let ca = Ca::new();
    let foreign = Ca::new().sign(&leaf(&[WEB]));
    assert_eq!(verify(&ca.bundle(), &foreign.leaf, Usage::Server), "UnknownIssuer");
    let key = KeyPair::generate().unwrap();
    let own = leaf(&[WEB]).self_signed(&key).unwrap().der().clone();
    assert_eq!(verify(&ca.bundle(), &own, Usage::Client), "UnknownIssuer");
    let garbage = CertificateDer::from(vec![0x30, 3, 1, 2, 3]);
    assert!(verify(&ca.bundle(), &garbage, Usage::Client).starts_with("Malformed"));
    assert_eq!(
        ca.bundle().verify(&[], Usage::Client, UnixTime::now()),
        Err(PeerRefusal::NoCertificate)
    );
    let leaf = ca.sign(&leaf(&[WEB])).leaf;
    assert_eq!(
        ca.bundle().verify(&vec![leaf; 7], Usage::Client, UnixTime::now()),
        Err(PeerRefusal::ChainTooLong)
    );
}

#[test]
fn a_bundle_is_a_set_and_never_empty() {
    let (old, new) = (Ca::new(), Ca::new());
    let both = old.bundle().union(&new.bundle());
    assert_eq!(both.len(), 2);
    for ca in [&old, &new] {
        assert_eq!(verify(&both, &ca.sign(&leaf(&[WEB])).leaf, Usage::Client), WEB);
    }
    assert!(both.same_roots(&new.bundle().union(&old.bundle())));
    assert!(!both.same_roots(&old.bundle()));
    let make = |certificates: Vec<CertificateDer<'static>>| {
        TrustBundle::new(TRUST_DOMAIN.into(), certificates).map(|bundle| bundle.len())
    };
    assert_eq!(make(vec![]), Err(BundleError::Empty));
    assert_eq!(make(vec![old.root(), old.root()]), Ok(1));
    let broken = make(vec![old.root(), CertificateDer::from(vec![1])]).unwrap_err();
    assert!(broken.to_string().starts_with("certificate 1 of the trust bundle"), "{broken}");
    let pem = TrustBundle::from_pem(TRUST_DOMAIN.into(), b"no PEM at all");
    assert_eq!(pem.unwrap_err(), BundleError::Empty);
}

#[test]
fn credentials_are_refused_when_peers_would_refuse_them() {
    let ca = Ca::new();
    let issued = ca.sign(&leaf(&[WEB]));
    let other_key = KeyPair::generate().unwrap();
    let error = Credentials::new(vec![issued.leaf.clone()], key_der(&other_key), ca.bundle());
    assert!(matches!(error, Err(CredentialsError::OtherKey)), "{error:?}");
    let error = Credentials::new(vec![issued.leaf.clone()], issued.key, Ca::new().bundle());
    assert!(
        matches!(error, Err(CredentialsError::Refused(PeerRefusal::UnknownIssuer))),
        "{error:?}"
    );
}

#[test]
fn debug_shows_no_key() {
    let text = format!("{:?}", Ca::new().credentials(&id("shop", "web")));
    assert!(text.contains(WEB) && !text.contains("key"), "{text}");
}

/// One handshake between two sides: what the client got, and what the server got.
async fn handshake(
    client: &Credentials,
    alpn: Alpn,
    expected: &SpiffeId,
    server: Arc<ServerConfig>,
) -> (Result<TlsStream<TcpStream>, Error>, io::Result<Option<Vec<u8>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let tcp = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let accept = async {
        let (tcp, _) = listener.accept().await.unwrap();
        let stream = TlsAcceptor::from(server).accept(tcp).await?;
        let (_, connection) = stream.get_ref();
        assert_eq!(connection.peer_certificates().map(<[_]>::len), Some(1));
        Ok(connection.alpn_protocol().map(<[u8]>::to_vec))
    };
    tokio::join!(connect(tcp, client, alpn, expected), accept)
}

#[tokio::test]
async fn both_sides_prove_themselves_and_agree_on_the_protocol() {
    let ca = Ca::new();
    let (client, server) =
        (ca.credentials(&id("shop", "web")), ca.credentials(&id("shop", "cart")));
    for alpn in Alpn::ALL {
        let config = server.server_config().unwrap();
        let (client, server) = handshake(&client, alpn, server.id(), config).await;
        let stream = client.unwrap();
        let (_, connection) = stream.get_ref();
        assert_eq!(connection.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
        let group = connection.negotiated_key_exchange_group().map(SupportedKxGroup::name);
        assert_eq!(group, Some(NamedGroup::X25519MLKEM768));
        let suite = connection.negotiated_cipher_suite().map(|suite| suite.suite());
        assert_eq!(suite, Some(rustls::CipherSuite::TLS13_AES_128_GCM_SHA256));
        assert_eq!(server.unwrap().as_deref().and_then(Alpn::parse), Some(alpn));
    }
}

#[tokio::test]
async fn a_peer_that_is_not_the_expected_one_gets_no_byte() {
    let ca = Ca::new();
    let client = ca.credentials(&id("shop", "web"));
    let server = ca.credentials(&id("shop", "cart"));
    let config = server.server_config().unwrap();
    let (result, _) = handshake(&client, Alpn::Http1, &id("shop", "payments"), config).await;
    assert_eq!(result.unwrap_err().reason().name(), "peer-identity-mismatch");
    let foreign = Ca::new().credentials(&id("shop", "cart"));
    let config = foreign.server_config().unwrap();
    let (result, _) = handshake(&client, Alpn::Http1, foreign.id(), config).await;
    assert!(
        matches!(result, Err(Error::PeerCertificateRefused(PeerRefusal::UnknownIssuer))),
        "{result:?}"
    );
}

#[tokio::test]
async fn a_server_refuses_a_client_of_another_mesh_and_says_why() {
    let server = Ca::new().credentials(&id("shop", "cart"));
    let stranger = Ca::new();
    let client = stranger.credentials(&id("shop", "web"));
    // The stranger trusts the server, so that the refusal is the server's alone.
    let client = client.with_bundle(Arc::new(client.bundle().union(server.bundle()))).unwrap();
    let config = server.server_config().unwrap();
    let (_, result) = handshake(&client, Alpn::Tcp, server.id(), config).await;
    let error = handshake_error(result.unwrap_err());
    assert!(
        matches!(error, Error::PeerCertificateRefused(PeerRefusal::UnknownIssuer)),
        "{error:?}"
    );
}

#[tokio::test]
async fn a_server_that_chooses_no_protocol_is_refused() {
    let ca = Ca::new();
    let client = ca.credentials(&id("shop", "web"));
    let server = ca.credentials(&id("shop", "cart"));
    let mut config = (*server.server_config().unwrap()).clone();
    config.alpn_protocols.clear();
    let (result, _) = handshake(&client, Alpn::Http2, server.id(), Arc::new(config)).await;
    assert_eq!(result.unwrap_err().reason().name(), "mesh-protocol-refused");
}

#[tokio::test]
async fn an_expired_certificate_of_our_own_opens_and_accepts_nothing() {
    let ca = Ca::new();
    let issued = ca.sign(&with(|params| params.not_after = at(1).into()));
    let own = Credentials::new(vec![issued.leaf], issued.key, ca.bundle()).unwrap();
    let wait = own.not_after().duration_since(SystemTime::now()).unwrap_or_default();
    tokio::time::sleep(wait + Duration::from_millis(10)).await;
    assert!(matches!(own.server_config(), Err(Error::CertificateExpired)));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let tcp = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let result = connect(tcp, &own, Alpn::Http1, &id("shop", "cart")).await;
    assert!(matches!(result, Err(Error::CertificateExpired)), "{result:?}");
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_says_nothing_is_given_up() {
    let ca = Ca::new();
    let client = ca.credentials(&id("shop", "web"));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let tcp = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let result = connect(tcp, &client, Alpn::Http1, &id("shop", "cart")).await;
    assert!(matches!(result, Err(Error::HandshakeTimeout)), "{result:?}");
}
