//! HTTP/1 through both proxies.

use super::*;

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

#[test]
fn requests_share_a_connection_and_carry_the_callers_identity() {
    run(async {
        let (app, address) = listen().await;
        let mesh = Mesh::new(address, v1::Protocol::Http1).await;
        let mut client = mesh.dial().await;
        let serve = async {
            let mut served = accept(&app).await;
            for _ in 0..3 {
                let got = read_until(&mut served, "\r\n\r\n").await;
                assert!(
                    got.contains("heddle-client-id: spiffe://cluster.local/ns/shop/sa/frontend")
                );
                assert!(!got.contains("forged"), "{got}");
                write(&mut served, OK).await;
            }
        };
        let ask = async {
            for _ in 0..3 {
                let request = "GET / HTTP/1.1\r\nHost: web\r\nheddle-client-id: forged\r\n\r\n";
                write(&mut client, request).await;
                assert_eq!(read_until(&mut client, "ok").await, OK);
            }
        };
        tokio::join!(serve, ask);
    });
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    run(async {
        let (app, address) = listen().await;
        let mesh = Mesh::new(address, v1::Protocol::Unspecified).await;
        let mut client = mesh.dial().await;
        let request =
            |n| format!("POST /{n} HTTP/1.1\r\nHost: w\r\nContent-Length: 3\r\n\r\nn={n}");
        write(&mut client, &format!("{}{}", request(1), request(2))).await;
        let mut served = accept(&app).await;
        for n in 1..=2 {
            let got = read_until(&mut served, &format!("n={n}")).await;
            assert!(got.starts_with(&format!("POST /{n} HTTP/1.1\r\n")), "{got}");
            write(&mut served, &format!("HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nr={n}")).await;
            read_until(&mut client, &format!("r={n}")).await;
        }
    });
}

#[test]
fn a_large_chunked_upload_and_an_interim_response_pass() {
    run(async {
        let (app, address) = listen().await;
        let mesh = Mesh::new(address, v1::Protocol::Http1).await;
        let client = mesh.dial().await;
        let (mut from, mut to) = client.into_split();
        let chunk = format!("{:x}\r\n{}\r\n", 50_000, "x".repeat(50_000));
        let upload = async {
            let head = "PUT /f HTTP/1.1\r\nHost: w\r\nTransfer-Encoding: chunked\r\n\
                        Expect: 100-continue\r\n\r\n";
            to.write_all(head.as_bytes()).await.unwrap();
            let mut interim = [0; 25];
            from.read_exact(&mut interim).await.unwrap();
            assert_eq!(&interim, b"HTTP/1.1 100 Continue\r\n\r\n");
            for _ in 0..40 {
                to.write_all(chunk.as_bytes()).await.unwrap();
            }
            to.write_all(b"0\r\nx-sum: 7\r\n\r\n").await.unwrap();
            let mut answer = vec![0; OK.len()];
            from.read_exact(&mut answer).await.unwrap();
            assert_eq!(answer, OK.as_bytes());
        };
        let serve = async {
            let mut served = accept(&app).await;
            read_until(&mut served, "\r\n\r\n").await;
            write(&mut served, "HTTP/1.1 100 Continue\r\n\r\n").await;
            let body = read_until(&mut served, "0\r\nx-sum: 7\r\n\r\n").await;
            assert_eq!(body.len(), chunk.len() * 40 + 15);
            write(&mut served, OK).await;
        };
        timeout(PATIENCE, Box::pin(async { tokio::join!(upload, serve) })).await.unwrap();
    });
}

#[test]
fn a_dead_application_proves_that_a_post_was_not_delivered() {
    run(async {
        let (app, alive) = listen().await;
        let mut mesh = Mesh::new(closed_port().await, v1::Protocol::Http1).await;
        let second = listen_inbound(&mesh.inbound.worker, alive).await;
        let dead = mesh.endpoint;
        mesh.endpoints(&[dead, second]);
        let mut client = mesh.dial().await;
        let serve = async {
            // Whichever endpoint is picked first, all ten POSTs are served, once each.
            let mut served = accept(&app).await;
            for n in 0..10 {
                let got = read_until(&mut served, &format!("id={n};")).await;
                assert_eq!(got.matches("id=").count(), 1, "{got}");
                write(&mut served, OK).await;
            }
        };
        let ask = async {
            for n in 0..10 {
                let request =
                    format!("POST / HTTP/1.1\r\nHost: w\r\nContent-Length: 5\r\n\r\nid={n};");
                write(&mut client, &request).await;
                assert_eq!(read_until(&mut client, "ok").await, OK);
            }
        };
        tokio::join!(serve, ask);
    });
}

#[test]
fn an_answer_of_the_mesh_says_so() {
    run(async {
        let mut mesh = Mesh::new(closed_port().await, v1::Protocol::Http1).await;
        let mut client = mesh.dial().await;
        write(&mut client, "GET / HTTP/1.1\r\nHost: w\r\n\r\n").await;
        let got = read_until(&mut client, "\r\n\r\n").await;
        assert!(got.starts_with("HTTP/1.1 503"), "{got}");
        assert!(got.contains("heddle-error: "), "{got}");
        assert!(!got.contains("heddle-not-delivered"), "{got}");

        mesh.endpoints(&[]);
        let mut client = mesh.dial().await;
        write(&mut client, "GET / HTTP/1.1\r\nHost: w\r\n\r\n").await;
        let got = read_until(&mut client, "\r\n\r\n").await;
        assert!(got.contains("heddle-error: no-endpoints\r\n"), "{got}");
        assert!(got.contains("heddle-error-proxy: outbound\r\n"), "{got}");
    });
}

#[test]
fn a_denied_caller_gets_403_on_a_connection_that_was_good_before() {
    run(async {
        let (app, address) = listen().await;
        let mut mesh = Mesh::new(address, v1::Protocol::Http1).await;
        let mut client = mesh.dial().await;
        let request = "GET / HTTP/1.1\r\nHost: w\r\n\r\n";
        write(&mut client, request).await;
        let mut served = accept(&app).await;
        read_until(&mut served, "\r\n\r\n").await;
        write(&mut served, OK).await;
        read_until(&mut client, "ok").await;

        let somebody = v1::Source {
            namespace: "shop".into(),
            service_account: "somebody".into(),
            ..v1::Source::default()
        };
        mesh.policy(vec![v1::Authorization {
            name: "shop/only[0]".into(),
            action: v1::Action::Allow.into(),
            from: vec![somebody],
            to: vec![],
        }]);
        write(&mut client, request).await;
        let got = read_until(&mut client, "\r\n\r\n").await;
        assert!(got.starts_with("HTTP/1.1 403"), "{got}");
        assert!(got.contains("heddle-error: authorization-denied\r\n"), "{got}");
        assert!(got.contains("heddle-error-proxy: inbound\r\n"), "{got}");
    });
}

#[test]
fn a_drain_retires_idle_connections_and_the_next_request_goes_elsewhere() {
    run(async {
        let (first_app, first) = listen().await;
        let (second_app, second) = listen().await;
        let mut mesh = Mesh::new(first, v1::Protocol::Http1).await;
        let mut client = mesh.dial().await;
        let request = "POST / HTTP/1.1\r\nHost: w\r\nContent-Length: 2\r\n\r\nhi";
        write(&mut client, request).await;
        let mut served = accept(&first_app).await;
        read_until(&mut served, "hi").await;
        write(&mut served, OK).await;
        read_until(&mut client, "ok").await;

        mesh.inbound.drain.start();
        let fresh = mesh.inbound_side();
        let fresh_address = listen_inbound(&fresh.worker, second).await;
        let draining = mesh.endpoint;
        mesh.endpoints(&[draining, fresh_address]);
        let ask = async {
            for _ in 0..5 {
                write(&mut client, request).await;
                assert_eq!(read_until(&mut client, "ok").await, OK);
            }
        };
        let serve = async {
            let mut served = accept(&second_app).await;
            for _ in 0..5 {
                read_until(&mut served, "hi").await;
                write(&mut served, OK).await;
            }
        };
        tokio::join!(ask, serve);
    });
}

#[test]
fn a_response_cut_in_the_middle_is_not_taken_for_a_whole_one() {
    run(async {
        let (app, address) = listen().await;
        let mesh = Mesh::new(address, v1::Protocol::Http1).await;
        for head in ["content-length: 100", "transfer-encoding: chunked"] {
            let mut client = mesh.dial().await;
            write(&mut client, "GET / HTTP/1.1\r\nHost: w\r\n\r\n").await;
            let mut served = accept(&app).await;
            read_until(&mut served, "\r\n\r\n").await;
            write(&mut served, &format!("HTTP/1.1 200 OK\r\n{head}\r\n\r\n4\r\npart\r\n")).await;
            read_until(&mut client, "part").await;
            drop(served);
            let mut rest = Vec::new();
            let end = timeout(PATIENCE, client.read_to_end(&mut rest)).await.unwrap();
            assert!(end.is_err(), "a reset, not an orderly end: {rest:?}");
        }
    });
}

#[test]
fn an_upgrade_becomes_a_tunnel_and_old_clients_get_no_chunks() {
    run(async {
        let (app, address) = listen().await;
        let mesh = Mesh::new(address, v1::Protocol::Http1).await;
        let mut client = mesh.dial().await;
        let head =
            "GET /ws HTTP/1.1\r\nHost: w\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n";
        write(&mut client, head).await;
        let mut served = accept(&app).await;
        let got = read_until(&mut served, "\r\n\r\n").await.to_lowercase();
        assert!(got.contains("upgrade: websocket"), "{got}");
        let switch = "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\nfirst";
        write(&mut served, switch).await;
        read_until(&mut client, "first").await;
        write(&mut client, "raw bytes").await;
        read_until(&mut served, "raw bytes").await;

        let mut client = mesh.dial().await;
        write(&mut client, "GET / HTTP/1.0\r\n\r\n").await;
        let mut served = accept(&app).await;
        read_until(&mut served, "\r\n\r\n").await;
        let chunked =
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n";
        write(&mut served, chunked).await;
        let got = read_to_end(&mut client).await;
        assert!(got.ends_with("\r\n\r\nhello"), "{got}");
    });
}

#[test]
fn a_request_timeout_in_the_middle_of_a_response_cuts_it() {
    run(async {
        let (app, address) = listen().await;
        let mut mesh = Mesh::new(address, v1::Protocol::Http1).await;
        let timeouts = v1::Timeouts { request_ms: 200, ..v1::Timeouts::default() };
        let policy = v1::Policy {
            source: "shop/web".into(),
            timeouts: Some(timeouts),
            ..v1::Policy::default()
        };
        mesh.outbound.put(v1::ResourceType::Policy, "shop/web", &policy);
        let mut client = mesh.dial().await;
        write(&mut client, "GET / HTTP/1.1\r\nHost: w\r\n\r\n").await;
        let mut served = accept(&app).await;
        read_until(&mut served, "\r\n\r\n").await;
        write(&mut served, "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\npart").await;
        read_until(&mut client, "part").await;
        let mut rest = Vec::new();
        let end = timeout(PATIENCE, client.read_to_end(&mut rest)).await.unwrap();
        assert!(end.is_err() && rest.is_empty(), "a reset and not a second answer: {rest:?}");

        let mut client = mesh.dial().await;
        write(&mut client, "GET / HTTP/1.1\r\nHost: w\r\n\r\n").await;
        let mut served = accept(&app).await;
        read_until(&mut served, "\r\n\r\n").await;
        let got = read_until(&mut client, "\r\n\r\n").await;
        assert!(got.starts_with("HTTP/1.1 504"), "{got}");
        assert!(got.contains("heddle-error: request-timeout\r\n"), "{got}");
    });
}

#[test]
fn an_answer_to_an_unfinished_upload_is_not_lost() {
    run(async {
        let (app, address) = listen().await;
        let mesh = Mesh::new(address, v1::Protocol::Http1).await;
        let client = mesh.dial().await;
        let (mut from, mut to) = client.into_split();
        let upload = async {
            let head = "PUT /f HTTP/1.1\r\nHost: w\r\nContent-Length: 10000000\r\n\r\n";
            to.write_all(head.as_bytes()).await.unwrap();
            // Until the proxy stops reading: whether the rest arrives is not the point.
            while to.write_all(&[b'x'; 4096]).await.is_ok() {}
        };
        let serve = async {
            let mut served = accept(&app).await;
            read_until(&mut served, "\r\n\r\n").await;
            write(&mut served, "HTTP/1.1 413 Too Large\r\ncontent-length: 3\r\n\r\nbig").await;
            let mut answer = [0; 60];
            let n = from.read(&mut answer).await.unwrap();
            assert!(answer[..n].starts_with(b"HTTP/1.1 413"));
            drop(from);
        };
        timeout(PATIENCE, Box::pin(async { tokio::join!(upload, serve) })).await.unwrap();
    });
}

#[test]
fn what_was_sent_once_is_not_called_undelivered() {
    run(async {
        let (app, address) = listen().await;
        let mesh = Mesh::new(address, v1::Protocol::Http1).await;
        let mut client = mesh.dial().await;
        let request = "GET / HTTP/1.1\r\nHost: w\r\n\r\n";
        write(&mut client, request).await;
        let mut served = accept(&app).await;
        read_until(&mut served, "\r\n\r\n").await;
        write(&mut served, OK).await;
        read_until(&mut client, "ok").await;

        write(&mut client, request).await;
        read_until(&mut served, "\r\n\r\n").await;
        drop((served, app));
        let got = read_until(&mut client, "\r\n\r\n").await;
        assert!(got.contains("heddle-error: connect-failed\r\n"), "{got}");
        assert!(got.contains("heddle-error-proxy: inbound\r\n"), "{got}");
    });
}

#[test]
fn the_time_of_a_try_holds_for_its_connection_too() {
    run(async {
        let (app, address) = listen().await;
        let (_silent, dead) = listen().await;
        let mut mesh = Mesh::new(address, v1::Protocol::Http1).await;
        let timeouts = v1::Timeouts { per_try_ms: 200, ..v1::Timeouts::default() };
        let policy = v1::Policy {
            source: "shop/web".into(),
            timeouts: Some(timeouts),
            ..v1::Policy::default()
        };
        mesh.outbound.put(v1::ResourceType::Policy, "shop/web", &policy);
        // It accepts, and never says a word of TLS.
        mesh.endpoints(&[dead]);
        let mut client = mesh.dial().await;
        write(&mut client, "GET / HTTP/1.1\r\nHost: w\r\n\r\n").await;
        let begun = Instant::now();
        let got = read_until(&mut client, "\r\n\r\n").await;
        assert!(got.contains("heddle-error: connect-timeout\r\n"), "{got}");
        assert!(begun.elapsed() < crate::tls::HANDSHAKE_TIMEOUT);
        drop(app);
    });
}
