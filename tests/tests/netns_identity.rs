//! Who is calling: never another than the certificate proves, however connections are shared and
//! whatever the caller claims; and no application is reached by who proves nothing.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use anyhow::{Context as _, bail, ensure};
use heddle_tests::app::Answer;
use heddle_tests::lab::Options;
use heddle_tests::real::{Background, Program, Side, Stage, Suite, require, sides};
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType, date_time_ymd,
};
use serde_json::Value;

/// How a caller keeps its connections, beside gRPC, which has many calls on one at once.
const MANNERS: &[&[&str]] = &[&["--http1.1"], &["-H", "Connection: close"]];
const CALLERS: &[&str] = &["alice", "bob"];

#[test]
fn callers_are_who_their_certificates_prove() {
    let curl = Program::Debian { name: "curl", package: "curl" };
    let openssl = Program::Debian { name: "openssl", package: "openssl" };
    let nc = Program::Debian { name: "nc", package: "netcat-openbsd" };
    require(&[curl, openssl, nc, Program::Python("grpc")]).unwrap();
    let manifests = sides(include_str!("../data/real/identity.yaml"));
    let stage = Stage::up(&manifests, Options::default()).unwrap();
    let mut suite = Suite::default();
    suite.both(&stage, "no caller is taken for another", interleaved);
    suite.all(&stage, "an HTTP/2 server that is quicker than its client", quick_server);
    suite.both(&stage, "a claim in bytes that only a server takes for HTTP", disguised);
    let outside = Side { client: "plain", server: "meshed" };
    suite.on(&stage, "only good certificates are let in", &[outside], certificates);
    suite.finish();
}

/// Both callers in every manner at the same time, each claiming to be the other.
fn interleaved(stage: &Stage, side: &Side) -> anyhow::Result<()> {
    let each = requests()?.div_ceil(CALLERS.len() * (MANNERS.len() + 1));
    let (mut curls, mut grpcs) = (Vec::new(), Vec::new());
    for (index, caller) in CALLERS.iter().enumerate() {
        let claim = identity(CALLERS[1 - index]);
        for (manner, options) in MANNERS.iter().enumerate() {
            let out = stage.shared(&format!("{}.{caller}.{manner}", side.client));
            let calls = call_many(stage, side, caller, &claim, options, each, &out)?;
            curls.push((*caller, out, calls));
        }
        let (target, number) = (format!("{}:9090", side.host("web")), each.to_string());
        let args = [target.as_str(), "identities", &number, &claim];
        grpcs.push((*caller, stage.start_python(&side.client(caller), "grpc_client.py", &args)?));
    }
    for (caller, out, calls) in curls {
        calls.wait()?.ok().context(caller)?;
        let answers = serde_json::Deserializer::from_reader(BufReader::new(File::open(&out)?));
        let answers: Vec<Answer> = answers.into_iter().collect::<Result<_, _>>()?;
        ensure!(answers.len() == each, "{caller}: {} of {each} answers", answers.len());
        for answer in answers {
            ensure!(answer.id.starts_with(caller), "{caller} got the answer to {}", answer.id);
            let told = answer.headers.iter().filter(|(name, _)| name.starts_with("heddle-"));
            let told: Vec<_> = told.map(|(name, value)| format!("{name}={value}")).collect();
            ensure!(!side.is_meshed() || told == [header(caller)], "{caller} is told as {told:?}");
        }
    }
    for (caller, calls) in grpcs {
        let told: BTreeMap<String, usize> = calls.wait()?.json().context(caller)?;
        let expected = BTreeMap::from([(header(caller), each)]);
        ensure!(!side.is_meshed() || told == expected, "{caller} is told as {told:?}");
    }
    Ok(())
}

/// A gRPC server sends its settings unasked. Whoever waits for them does not so become opaque, where
/// a claim would pass unread.
fn quick_server(stage: &Stage, side: &Side) -> anyhow::Result<()> {
    let (host, claim) = (side.host("web"), identity("bob"));
    let args = ["late_http2", host.as_str(), "9090", &claim];
    for _ in 0..3 {
        let ran = stage.python(&side.client("alice"), "probe.py", &args)?;
        let seen: Value = ran.json()?;
        let answer = seen["answer"].as_str().unwrap_or_default();
        let (told, claimed) = (answer.contains(&header("alice")), answer.contains(&claim));
        ensure!(told == (side.client == "meshed") && claimed != side.is_meshed(), "{seen}");
        // The control shows that the server does speak first.
        ensure!((seen["first"] == 0) == side.is_meshed(), "{seen}");
    }
    Ok(())
}

/// Two empty lines before a request are no HTTP to the proxy, and nothing to a lenient server. On a
/// port that is declared HTTP they reach it in no way: not by the Service, nor by the pod's address,
/// whose dialler is not told what the Service declares.
fn disguised(stage: &Stage, side: &Side) -> anyhow::Result<()> {
    let (service, pod) = (side.host("declared"), stage.address(&side.server("web"), 0)?);
    let claim = format!("heddle-client-id: {}", identity("bob"));
    let request = format!("\\r\\n\\r\\nGET / HTTP/1.1\\r\\nHost: a\\r\\n{claim}\\r\\n\\r\\n");
    for target in [service, pod.to_string()] {
        let command = format!("printf '{request}' | nc -w 1 {target} 8081");
        let ran = stage.run(&side.client("alice"), &["sh", "-c", &command])?;
        let fooled = ran.out.contains(&identity("bob"));
        ensure!(fooled != side.is_meshed(), "{target}: {}", ran.excerpt());
    }
    // Whoever is honest is served there.
    for target in [side.host("declared"), pod.to_string()] {
        let url = format!("http://{target}:8081/");
        let ran = stage.run(&side.client("alice"), &["curl", "-sS", "-m", "10", &url])?.ok()?;
        ensure!(ran.out.contains(&header_json("alice")) == side.is_meshed(), "{}", ran.out);
    }
    Ok(())
}

fn header_json(account: &str) -> String {
    format!(r#"["heddle-client-id","{}"]"#, identity(account))
}

fn identity(account: &str) -> String {
    format!("spiffe://cluster.local/ns/meshed/sa/{account}")
}

fn header(account: &str) -> String {
    format!("heddle-client-id={}", identity(account))
}

/// 10⁴ unless the environment asks for more.
fn requests() -> anyhow::Result<usize> {
    let Some(asked) = std::env::var_os("HEDDLE_TEST_IDENTITY_REQUESTS") else { return Ok(10_000) };
    let asked = asked.to_string_lossy();
    match asked.parse() {
        Ok(number) if (1..=100_000).contains(&number) => Ok(number),
        _ => bail!("HEDDLE_TEST_IDENTITY_REQUESTS: {asked:?}: write 1 to 100000"),
    }
}

fn call_many(
    stage: &Stage,
    side: &Side,
    caller: &str,
    claim: &str,
    options: &[&str],
    number: usize,
    out: &Path,
) -> anyhow::Result<Background> {
    let url = format!("http://{}:8080/?id={caller}-[1-{number}]", side.host("web"));
    let claim = format!("heddle-client-id: {claim}");
    let out = out.display().to_string();
    let mut argv = vec!["sh", "-c", "exec \"$@\" > \"$0\"", &out, "curl", "-sS", "-H", &claim];
    argv.extend(options);
    argv.push(&url);
    stage.start(&side.client(caller), &argv)
}

/// A certificate and what becomes of its bearer.
struct Bearer {
    name: &'static str,
    /// The certificate and its key, in PEM.
    pem: Option<(String, String)>,
    alpn: &'static str,
    welcome: bool,
}

/// Each dials the pod itself, past every proxy of its own.
fn certificates(stage: &Stage, side: &Side) -> anyhow::Result<()> {
    let address = stage.address(&side.server("web"), 0)?;
    let state = stage.lab().layout().state();
    let mut wrong = BTreeMap::new();
    for bearer in bearers(&state.join("ca"))? {
        let Bearer { name, pem, alpn, welcome } = bearer;
        let id = format!("bearer-{}", name.replace(' ', "-"));
        let request =
            format!("GET /?id={id} HTTP/1.1\\r\\nHost: web\\r\\nConnection: close\\r\\n\\r\\n");
        let mut options = format!("-connect {address}:8080 -alpn {alpn} -quiet");
        if let Some((certificate, key)) = &pem {
            let certificate = stage.share(&format!("{id}.pem"), certificate.as_bytes())?;
            let key = stage.share(&format!("{id}.key"), key.as_bytes())?;
            options.push_str(&format!(" -cert {certificate} -key {key}"));
        }
        let command =
            format!("(printf '{request}'; sleep 1) | timeout 5 openssl s_client {options}");
        let ran = stage.run(&side.client("alice"), &["sh", "-c", &command])?;
        let answered = ran.out.contains("HTTP/1.1 200");
        let ledger = std::fs::read_to_string(stage.shared("meshed.ledger")).unwrap_or_default();
        let hit = ledger.contains(&id);
        let known = !welcome || ran.out.contains(&identity("alice"));
        if answered != welcome || hit != welcome || !known {
            wrong.insert(name, format!("answered: {answered}, hit: {hit}; {}", ran.excerpt()));
        }
    }
    ensure!(wrong.is_empty(), "{wrong:#?}");
    Ok(())
}

/// The mesh's own authority signs most of them: what is wrong is only what is named.
fn bearers(authority: &Path) -> anyhow::Result<Vec<Bearer>> {
    let read = |name: &str| std::fs::read_to_string(authority.join(name)).context(name.to_owned());
    let own = Issuer::from_ca_cert_pem(&read("root.pem")?, KeyPair::from_pem(&read("root.key")?)?)?;
    let foreign = foreign_issuer()?;
    let uri = |uri: &str| -> anyhow::Result<SanType> { Ok(SanType::URI(uri.try_into()?)) };
    let alice = uri(&identity("alice"))?;
    let good = || leaf(std::slice::from_ref(&alice));
    let with = |change: fn(&mut CertificateParams)| {
        let mut params = good();
        change(&mut params);
        params
    };
    let expired = with(|params| params.not_after = date_time_ymd(2020, 2, 1));
    let early = with(|params| params.not_before = date_time_ymd(2090, 1, 1));
    let server_only =
        with(|params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth]);
    let dns = SanType::DnsName("alice.meshed".try_into()?);
    let mut bearers = vec![
        Bearer { name: "a good one", ..bearer(&own, &good())? },
        Bearer { name: "nothing", pem: None, alpn: "heddle-h1", welcome: false },
        Bearer {
            name: "a good one for another protocol",
            alpn: "http/1.1",
            ..bearer(&own, &good())?
        },
    ];
    bearers[0].welcome = true;
    let refused = [
        ("one of another mesh", &foreign, good()),
        ("one that has expired", &own, expired),
        ("one that is not valid yet", &own, early),
        ("one for servers only", &own, server_only),
        ("one without an identity", &own, leaf(&[])),
        ("one with a host name only", &own, leaf(&[dns])),
        ("one with two identities", &own, leaf(&[alice.clone(), uri(&identity("bob"))?])),
        (
            "one of another trust domain",
            &own,
            leaf(&[uri("spiffe://other.example/ns/meshed/sa/alice")?]),
        ),
        (
            "one with another kind of URI",
            &own,
            leaf(&[uri("https://cluster.local/ns/meshed/sa/alice")?]),
        ),
        ("one with a path that is no account", &own, leaf(&[uri("spiffe://cluster.local/alice")?])),
    ];
    for (name, issuer, params) in refused {
        bearers.push(Bearer { name, ..bearer(issuer, &params)? });
    }
    Ok(bearers)
}

fn bearer(issuer: &Issuer<'_, KeyPair>, params: &CertificateParams) -> anyhow::Result<Bearer> {
    let key = KeyPair::generate()?;
    let certificate = params.signed_by(&key, issuer)?;
    let pem = Some((certificate.pem(), key.serialize_pem()));
    Ok(Bearer { name: "", pem, alpn: "heddle-h1", welcome: false })
}

fn leaf(sans: &[SanType]) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.subject_alt_names = sans.to_vec();
    params.not_before = date_time_ymd(2020, 1, 1);
    params.not_after = date_time_ymd(2100, 1, 1);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
    params
}

fn foreign_issuer() -> anyhow::Result<Issuer<'static, KeyPair>> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    Ok(Issuer::new(params, KeyPair::generate()?))
}
