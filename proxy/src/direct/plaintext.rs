//! Callers without a proxy on a Permissive port.

use super::*;

fn permissive(authorizations: Vec<v1::Authorization>) -> v1::InboundPolicy {
    v1::InboundPolicy { default_tls: v1::TlsMode::Permissive.into(), ..policy(authorizations) }
}

#[test]
fn a_drain_tells_a_caller_that_its_connection_ends() {
    run(async {
        let (app, address) = listen().await;
        let mut mesh = Mesh::new(address, v1::Protocol::Http1).await;
        mesh.inbound.put(v1::ResourceType::InboundPolicy, "shop/web", &permissive(vec![]));
        let mut caller = TcpStream::connect(mesh.endpoint).await.unwrap();
        write(&mut caller, "GET / HTTP/1.1\r\nHost: w\r\n\r\n").await;
        let mut served = accept(&app).await;
        read_until(&mut served, "\r\n\r\n").await;
        mesh.inbound.drain.start();
        write(&mut served, "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
        let got = read_to_end(&mut caller).await;
        assert!(got.contains("connection: close\r\n") && got.ends_with("ok"), "{got}");
    });
}

#[test]
fn a_right_that_was_withdrawn_while_both_were_silent_is_gone() {
    run(async {
        let (app, address) = listen().await;
        let mut mesh = Mesh::new(address, v1::Protocol::Unspecified).await;
        mesh.inbound.put(v1::ResourceType::InboundPolicy, "shop/web", &permissive(vec![]));
        let mut caller = TcpStream::connect(mesh.endpoint).await.unwrap();
        let mut served = accept(&app).await;
        let deny = v1::Authorization {
            name: "shop/closed[0]".into(),
            action: v1::Action::Deny.into(),
            from: vec![v1::Source { anyone: true, ..v1::Source::default() }],
            to: vec![],
        };
        mesh.inbound.put(v1::ResourceType::InboundPolicy, "shop/web", &permissive(vec![deny]));
        write(&mut served, "secret").await;
        let mut got = Vec::new();
        let end = timeout(PATIENCE, caller.read_to_end(&mut got)).await.unwrap();
        assert!(end.is_err() && got.is_empty(), "{got:?}");
    });
}
