//! Opaque bytes and detection through both proxies.

use super::*;
use crate::pool;
use crate::tls::Alpn;

#[test]
fn a_server_that_speaks_first_is_heard_without_configuration() {
    run(async {
        let (app, address) = listen().await;
        let mesh = Mesh::new(address, v1::Protocol::Unspecified).await;
        for _ in 0..2 {
            let mut client = mesh.dial().await;
            let mut served = accept(&app).await;
            write(&mut served, "220 ready\r\n").await;
            read_until(&mut client, "220 ready\r\n").await;
            write(&mut client, "QUIT\r\n").await;
            read_until(&mut served, "QUIT\r\n").await;
            drop(served);
            assert_eq!(read_to_end(&mut client).await, "");
        }
    });
}

#[test]
fn a_late_http_client_on_an_undeclared_port_is_still_http() {
    run(async {
        let (app, address) = listen().await;
        let mesh = Mesh::new(address, v1::Protocol::Unspecified).await;
        let mut client = mesh.dial().await;
        // The race opens the server's side: an idle connection that says nothing.
        let idle = accept(&app).await;
        write(&mut client, "GET / HTTP/1.1\r\nHost: w\r\n\r\n").await;
        let mut served = accept(&app).await;
        let got = read_until(&mut served, "\r\n\r\n").await;
        assert!(got.contains("heddle-client-id"), "parsed as HTTP: {got}");
        drop(idle);
    });
}

#[test]
fn half_close_passes_both_ways() {
    run(async {
        let (app, address) = listen().await;
        let mesh = Mesh::new(address, v1::Protocol::Tcp).await;
        let mut client = mesh.dial().await;
        write(&mut client, "question").await;
        client.shutdown().await.unwrap();
        let mut served = accept(&app).await;
        assert_eq!(read_to_end(&mut served).await, "question");
        write(&mut served, "answer").await;
        drop(served);
        assert_eq!(read_to_end(&mut client).await, "answer");
    });
}

#[test]
fn a_withdrawn_right_ends_an_open_connection() {
    run(async {
        let (app, address) = listen().await;
        let mut mesh = Mesh::new(address, v1::Protocol::Tcp).await;
        let mut client = mesh.dial().await;
        write(&mut client, "hello").await;
        let mut served = accept(&app).await;
        read_until(&mut served, "hello").await;
        let nobody = v1::Authorization {
            name: "shop/nobody[0]".into(),
            action: v1::Action::Allow.into(),
            ..v1::Authorization::default()
        };
        mesh.policy(vec![nobody]);
        let mut rest = Vec::new();
        let end = timeout(PATIENCE, client.read_to_end(&mut rest)).await.unwrap();
        assert!(end.is_err() || rest.is_empty());
    });
}

#[test]
fn another_identity_than_expected_gets_no_byte() {
    run(async {
        let (app, address) = listen().await;
        let mut mesh = Mesh::new(address, v1::Protocol::Http1).await;
        let mut body = endpoints(&[mesh.endpoint]);
        body.endpoints[0].identity = "spiffe://cluster.local/ns/shop/sa/other".into();
        mesh.outbound.put(v1::ResourceType::Endpoints, "shop/web:80", &body);
        let mut client = mesh.dial().await;
        write(&mut client, "GET / HTTP/1.1\r\nHost: w\r\n\r\n").await;
        let got = read_until(&mut client, "\r\n\r\n").await;
        assert!(got.contains("heddle-error: peer-identity-mismatch\r\n"), "{got}");
        let nothing = timeout(Duration::from_millis(50), app.accept()).await;
        assert!(nothing.is_err(), "the application saw a connection");
    });
}

#[test]
fn a_late_http_client_is_heard_where_opaque_bytes_are_denied() {
    run(async {
        let (app, address) = listen().await;
        let mut mesh = Mesh::new(address, v1::Protocol::Unspecified).await;
        let get = v1::Target { methods: vec!["GET".into()], ..v1::Target::default() };
        mesh.policy(vec![v1::Authorization {
            name: "shop/get[0]".into(),
            action: v1::Action::Allow.into(),
            from: vec![v1::Source { anyone: true, ..v1::Source::default() }],
            to: vec![get],
        }]);
        let mut client = mesh.dial().await;
        // Longer than the race takes to be lost.
        tokio::time::sleep(Duration::from_millis(100)).await;
        write(&mut client, "GET / HTTP/1.1\r\nHost: w\r\n\r\n").await;
        let mut served = accept(&app).await;
        read_until(&mut served, "\r\n\r\n").await;
        write(&mut served, "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
        read_until(&mut client, "ok").await;
    });
}

#[test]
fn a_client_that_breaks_off_within_its_first_word_leaves_no_count_behind() {
    run(async {
        let (app, address) = listen().await;
        let mesh = Mesh::new(address, v1::Protocol::Unspecified).await;
        let mut client = mesh.dial().await;
        let _raced = accept(&app).await;
        let found = mesh.outbound.worker.find_destination(dialled()).await.unwrap();
        let Destination::Service(port) = found else { panic!("a Service") };
        let state = port.backends[0].ready[0].state.clone();
        assert_eq!(state.in_flight(), 1);
        write(&mut client, "GE").await;
        client.set_zero_linger().unwrap();
        drop(client);
        let ended = async {
            while state.in_flight() > 0 {
                tokio::task::yield_now().await;
            }
        };
        timeout(PATIENCE, ended).await.expect("the attempt has ended");
    });
}

#[test]
fn a_reader_that_pauses_is_not_taken_for_dead() {
    run(async {
        let (_app, address) = listen().await;
        let mut mesh = Mesh::new(address, v1::Protocol::Tcp).await;
        let mut body = endpoints(&[address]);
        body.endpoints[0].identity.clear();
        mesh.outbound.put(v1::ResourceType::Endpoints, "shop/web:80", &body);
        let worker = &mesh.outbound.worker;
        let found = worker.find_destination(dialled()).await.unwrap();
        let Destination::Service(port) = found else { panic!("a Service") };
        let endpoint = &port.backends[0].ready[0];
        for (alpn, bounded) in [(Alpn::Tcp, false), (Alpn::Http1, true), (Alpn::Http2, true)] {
            let conn = pool::connect(worker, endpoint, alpn, PATIENCE).await.unwrap();
            let socket = socket2::SockRef::from(conn.io.tcp().unwrap());
            let limit = socket.tcp_user_timeout().unwrap();
            // The kernel cuts whoever does not read for this long, alive or not.
            assert_eq!(limit.is_some_and(|limit| !limit.is_zero()), bounded, "{alpn:?}");
            assert!(socket.keepalive().unwrap(), "a dead peer is noticed in any case");
        }
    });
}

#[test]
fn a_forwarded_connection_that_is_dropped_is_not_taken_for_ended() {
    run(async {
        let (app, address) = listen().await;
        let mesh = Mesh::new(address, v1::Protocol::Tcp).await;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (tcp, peer) = listener.accept().await.unwrap();
        let worker = mesh.outbound.worker.clone();
        let task = spawn_local(async move {
            outbound::serve(Accepted { tcp, peer, original: dialled() }, &worker).await;
        });
        let mut served = accept(&app).await;
        write(&mut served, "part").await;
        read_until(&mut client, "part").await;
        // As at the end of a drain.
        task.abort();
        let mut rest = [0; 8];
        assert!(timeout(PATIENCE, client.read(&mut rest)).await.unwrap().is_err());
        assert!(timeout(PATIENCE, served.read(&mut rest)).await.unwrap().is_err());
    });
}
