//! `heddle-init` against a real kernel, in the pods of a lab: what is redirected and what is not,
//! and that the original destination can be read.

#![expect(clippy::unwrap_used, reason = "what helps a test fails like a test")]

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use heddle_api::names::{
    CANARY_PORT, CANARY_V4, CANARY_V6, INBOUND_PORT, METRICS_PORT, OUTBOUND_PORT, PROXY_UID,
};
use heddle_tests::lab::{Lab, Options};
use nix::sched::{CloneFlags, setns};
use nix::unistd::{Uid, setfsuid};
use socket2::SockRef;
use tempfile::TempDir;

const LAB: &str = env!("CARGO_BIN_EXE_heddle-lab");
const APPLICATION: u32 = 65532;
const TIMEOUT: Duration = Duration::from_secs(2);

/// Two pods without a proxy: the tests are the proxy, the application and the peer.
const PODS: &str = "
apiVersion: v1
kind: Namespace
metadata: { name: default, labels: { heddle.io/inject: disabled } }
---
apiVersion: v1
kind: Pod
metadata: { name: pod }
spec: { containers: [{ name: shell, command: [sleep, infinity] }] }
---
apiVersion: v1
kind: Pod
metadata: { name: peer }
spec: { containers: [{ name: shell, command: [sleep, infinity] }] }
";

struct Pods {
    lab: Lab,
    _dir: TempDir,
}

fn pods() -> Pods {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("pods.yaml"), PODS).unwrap();
    let options = Options { control_plane: false, ..Options::default() };
    Pods { lab: Lab::up(dir.path(), &options).unwrap(), _dir: dir }
}

impl Pods {
    /// Runs heddle-init in the pod.
    fn init(&self, arguments: &[&str]) -> Output {
        let program = Path::new(LAB).with_file_name("heddle-init");
        Command::new("ip")
            .args(["netns", "exec", &self.lab.netns("pod").unwrap()])
            .arg(program)
            .args(arguments)
            .output()
            .unwrap()
    }

    fn write_rules(&self, arguments: &[&str]) {
        let output = self.init(arguments);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    fn address(&self, pod: &str, v6: bool) -> IpAddr {
        self.lab.pod(pod).unwrap().addresses[usize::from(v6)]
    }

    /// Runs `work` in a pod's network namespace, its sockets owned by `uid`.
    fn inside<T: Send + 'static>(
        &self,
        pod: &str,
        uid: u32,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> T {
        let path = Path::new("/run/netns").join(self.lab.netns(pod).unwrap());
        let netns = File::open(path).unwrap();
        let thread = std::thread::spawn(move || {
            setns(netns, CloneFlags::CLONE_NEWNET).unwrap();
            setfsuid(Uid::from_raw(uid));
            work()
        });
        thread.join().unwrap()
    }

    /// A listener of a pod's that takes both families.
    fn listen(&self, pod: &str, port: u16) -> TcpListener {
        self.inside(pod, PROXY_UID, move || {
            TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).unwrap()
        })
    }

    fn dial(&self, pod: &str, uid: u32, to: SocketAddr) -> Option<TcpStream> {
        self.inside(pod, uid, move || TcpStream::connect_timeout(&to, TIMEOUT).ok())
    }
}

/// Accepts what is already connected, and says where it was going.
fn accept(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    let (stream, peer) = listener.accept().unwrap();
    let socket = SockRef::from(&stream);
    // A v4 client of a v6 listener asks the v4 way.
    let original = if peer.ip().to_canonical().is_ipv4() {
        socket.original_dst_v4()
    } else {
        socket.original_dst_v6()
    };
    let original = original.unwrap().as_socket().unwrap();
    (stream, SocketAddr::new(original.ip().to_canonical(), original.port()))
}

/// Whether nobody has connected to a listener.
fn is_idle(listener: &TcpListener) -> bool {
    listener.set_nonblocking(true).unwrap();
    let idle = listener.accept().is_err();
    listener.set_nonblocking(false).unwrap();
    idle
}

#[test]
fn both_directions_are_redirected_and_the_destination_is_known() {
    let pods = pods();
    pods.write_rules(&[]);
    let outbound = pods.listen("pod", OUTBOUND_PORT);
    let inbound = pods.listen("pod", INBOUND_PORT);
    for v6 in [false, true] {
        let peer = SocketAddr::new(pods.address("peer", v6), 9999);
        let mut client = pods.dial("pod", APPLICATION, peer).expect("redirected");
        let (mut server, original) = accept(&outbound);
        assert_eq!(original, peer);
        client.write_all(b"ping").unwrap();
        let mut bytes = [0; 4];
        server.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"ping");

        // Root is nobody special, and neither is the pod's own address, though it is reached over lo.
        let own = SocketAddr::new(pods.address("pod", v6), 7777);
        for uid in [0, APPLICATION] {
            let _client = pods.dial("pod", uid, own).expect("redirected");
            assert_eq!(accept(&outbound).1, own, "uid {uid}");
        }

        let _client = pods.dial("peer", APPLICATION, own).expect("redirected");
        assert_eq!(accept(&inbound).1, own);
    }
    assert!(is_idle(&outbound) && is_idle(&inbound));
}

#[test]
fn the_proxy_loopback_and_metrics_are_left_alone() {
    let pods = pods();
    pods.write_rules(&[]);
    let outbound = pods.listen("pod", OUTBOUND_PORT);
    let inbound = pods.listen("pod", INBOUND_PORT);
    let application = pods.listen("pod", 8080);
    let metrics = pods.listen("pod", METRICS_PORT);
    let remote = pods.listen("peer", 9999);
    for v6 in [false, true] {
        let peer = SocketAddr::new(pods.address("peer", v6), 9999);
        let _client = pods.dial("pod", PROXY_UID, peer).expect("the proxy dials for itself");
        remote.accept().unwrap();
        // The proxy delivers to the application over the pod's own address.
        let own = SocketAddr::new(pods.address("pod", v6), 8080);
        let _client = pods.dial("pod", PROXY_UID, own).expect("the proxy reaches the application");
        application.accept().unwrap();
        let loopback: IpAddr =
            if v6 { Ipv6Addr::LOCALHOST.into() } else { Ipv4Addr::LOCALHOST.into() };
        let _client = pods.dial("pod", APPLICATION, SocketAddr::new(loopback, 8080)).unwrap();
        application.accept().unwrap();
        let scraped = SocketAddr::new(pods.address("pod", v6), METRICS_PORT);
        let _client = pods.dial("peer", APPLICATION, scraped).expect("metrics are for everybody");
        metrics.accept().unwrap();
    }
    assert!(is_idle(&outbound) && is_idle(&inbound));
}

#[test]
fn the_canary_answers_every_uid_while_the_rules_stand() {
    let pods = pods();
    let canary = pods.listen("pod", CANARY_PORT);
    let addresses = [IpAddr::from(CANARY_V4), IpAddr::from(CANARY_V6)];
    for address in addresses.map(|address| SocketAddr::new(address, CANARY_PORT)) {
        assert!(pods.dial("pod", PROXY_UID, address).is_none(), "nobody is there without rules");
        pods.write_rules(&[]);
        for uid in [PROXY_UID, APPLICATION, 0] {
            let _client = pods.dial("pod", uid, address).expect("redirected");
            assert_eq!(accept(&canary).1, address);
        }
        assert!(pods.init(&["--remove"]).status.success());
        assert!(pods.dial("pod", PROXY_UID, address).is_none(), "the rules are gone");
    }
}

#[test]
fn only_what_is_listed_is_skipped() {
    let pods = pods();
    let networks = format!("{}/32,{}", pods.address("peer", false), pods.address("peer", true));
    let cases: [(&[&str], bool); 3] = [
        (&["--skip-outbound-ports", "1-5,9999"], true),
        (&["--skip-outbound-cidrs", &networks], true),
        (&["--skip-outbound-ports", "9998", "--skip-outbound-cidrs", "10.0.0.0/32"], false),
    ];
    let outbound = pods.listen("pod", OUTBOUND_PORT);
    let inbound = pods.listen("pod", INBOUND_PORT);
    let remote = pods.listen("peer", 9999);
    let application = pods.listen("pod", 8080);
    for v6 in [false, true] {
        for (arguments, skipped) in cases {
            pods.write_rules(arguments);
            let peer = SocketAddr::new(pods.address("peer", v6), 9999);
            let _client = pods.dial("pod", APPLICATION, peer).expect("connected");
            let listener = if skipped { &remote } else { &outbound };
            listener.accept().unwrap();
        }
        let own = SocketAddr::new(pods.address("pod", v6), 8080);
        for (port, listener) in [("8080", &application), ("8081", &inbound)] {
            pods.write_rules(&["--skip-inbound-ports", port]);
            let _client = pods.dial("peer", APPLICATION, own).expect("connected");
            listener.accept().unwrap();
        }
    }
    assert!([&outbound, &inbound, &remote, &application].into_iter().all(is_idle));
}

#[test]
fn udp_is_not_touched() {
    let pods = pods();
    pods.write_rules(&[]);
    for v6 in [false, true] {
        let to = SocketAddr::new(pods.address("peer", v6), 5353);
        let server = pods.inside("peer", 0, move || UdpSocket::bind(to).unwrap());
        server.set_read_timeout(Some(TIMEOUT)).unwrap();
        let from = SocketAddr::new(pods.address("pod", v6), 0);
        let sent = pods.inside("pod", APPLICATION, move || {
            let client = UdpSocket::bind(from).unwrap();
            client.send_to(b"query", to).unwrap();
            client.set_read_timeout(Some(TIMEOUT)).unwrap();
            client
        });
        let mut bytes = [0; 16];
        let (length, peer) = server.recv_from(&mut bytes).unwrap();
        assert_eq!(&bytes[..length], b"query");
        server.send_to(b"answer", peer).unwrap();
        let (length, answering) = sent.recv_from(&mut bytes).unwrap();
        assert_eq!((&bytes[..length], answering), (&b"answer"[..], to));
    }
}

#[test]
fn a_second_run_changes_nothing_and_check_names_differences() {
    let pods = pods();
    let listing = || {
        let netns = pods.lab.netns("pod").unwrap();
        let nft = ["netns", "exec", &netns, "nft", "list", "table", "inet", "heddle"];
        String::from_utf8(Command::new("ip").args(nft).output().unwrap().stdout).unwrap()
    };
    let complaint = |arguments: &[&str]| {
        let output = pods.init(arguments);
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    assert!(complaint(&["--check"]).1.contains("run heddle-init without --check"));
    let arguments = ["--skip-inbound-ports", "22,100-200", "--skip-outbound-cidrs", "fd00::/8"];
    pods.write_rules(&arguments);
    let once = listing();
    pods.write_rules(&arguments);
    assert_eq!(listing(), once);
    assert!(once.contains("type nat hook output"), "{once}");

    let checked = [&["--check"], &arguments[..]].concat();
    assert_eq!(complaint(&checked).0, Some(0));
    let (code, text) = complaint(&["--check"]);
    assert_eq!(code, Some(1));
    assert!(text.contains("chain inbound, rule 4"), "{text}");
    // Somebody's tinkering is noticed, and the next run puts it right.
    let netns = pods.lab.netns("pod").unwrap();
    let tamper = ["netns", "exec", &netns, "nft", "insert", "rule", "inet", "heddle", "outbound"];
    let tampered = Command::new("ip").args(tamper).args(["tcp", "dport", "443", "accept"]).status();
    assert!(tampered.unwrap().success());
    let (code, text) = complaint(&checked);
    assert_eq!(code, Some(1));
    assert!(text.contains("chain outbound, rule 1"), "{text}");
    assert!(text.contains("is `tcp dport 443 accept`"), "{text}");
    pods.write_rules(&arguments);
    assert_eq!(listing(), once);
}
