//! TLS, token and kubeconfig, over real sockets.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail loudly")]

mod support;

use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;

use http_body_util::{BodyExt, Empty};
use hyper::body::Bytes;
use hyper_util::rt::{TokioExecutor, TokioIo};
use podwire_apiserver::Server;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

struct Running {
    dir: tempfile::TempDir,
    server: Arc<Server>,
    port: u16,
    serving: tokio::task::JoinHandle<()>,
}

async fn start() -> Running {
    let dir = tempfile::tempdir().unwrap();
    let server = Arc::new(Server::open(support::config(dir.path())).await.unwrap());
    let listeners = vec![std::net::TcpListener::bind("127.0.0.1:0").unwrap()];
    let port = listeners[0].local_addr().unwrap().port();
    let serving = Arc::clone(&server);
    let serving = tokio::spawn(async move { serving.serve(listeners).await.unwrap() });
    Running {
        dir,
        server,
        port,
        serving,
    }
}

impl Running {
    async fn get(&self, h2: bool, name: &str, path: &str, token: Option<&str>) -> (u16, String) {
        let response = self.open(h2, name, path, token).await;
        let code = response.status().as_u16();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (code, String::from_utf8_lossy(&body).into_owned())
    }

    async fn open(
        &self,
        h2: bool,
        name: &str,
        path: &str,
        token: Option<&str>,
    ) -> http::Response<hyper::body::Incoming> {
        let mut roots = rustls::RootCertStore::empty();
        roots
            .add(CertificateDer::from_pem_slice(self.server.ca().as_bytes()).unwrap())
            .unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        if h2 {
            config.alpn_protocols = vec![b"h2".to_vec()];
        }
        let tcp = tokio::net::TcpStream::connect(("127.0.0.1", self.port))
            .await
            .unwrap();
        let name = rustls::pki_types::ServerName::try_from(name.to_owned()).unwrap();
        let stream = tokio_rustls::TlsConnector::from(Arc::new(config))
            .connect(name, tcp)
            .await
            .unwrap();
        let mut request = http::Request::builder().uri(format!("https://localhost{path}"));
        if let Some(token) = token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let request = request.body(Empty::<Bytes>::new()).unwrap();
        let io = TokioIo::new(stream);
        if h2 {
            let (mut sender, connection) =
                hyper::client::conn::http2::handshake(TokioExecutor::new(), io)
                    .await
                    .unwrap();
            tokio::spawn(connection);
            sender.send_request(request).await.unwrap()
        } else {
            let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
            tokio::spawn(connection);
            sender.send_request(request).await.unwrap()
        }
    }
}

#[tokio::test]
async fn only_the_token_lets_in_and_both_versions_of_http_work() {
    let running = start().await;
    let token = running.server.token().to_owned();
    for h2 in [false, true] {
        let get = async |path, token| running.get(h2, "localhost", path, token).await;
        let (code, body) = get("/api/v1/pods", Some(token.as_str())).await;
        assert_eq!(code, 200, "{body}");
        for wrong in [None, Some("wrong"), Some(&token[1..])] {
            let (code, body) = get("/api/v1/pods", wrong).await;
            assert_eq!(code, 401);
            assert!(body.contains("\"reason\":\"Unauthorized\""), "{body}");
        }
        assert_eq!(get("/healthz", None).await.0, 200);
    }
}

#[tokio::test]
async fn the_certificate_names_all_ways_to_the_server() {
    let running = start().await;
    for name in [
        "localhost",
        "127.0.0.1",
        "::1",
        "192.168.64.2",
        "fd00:64::2",
        "10.96.0.1",
        "kubernetes.default.svc",
        "kubernetes.default.svc.cluster.local",
    ] {
        assert_eq!(
            running.get(false, name, "/healthz", None).await.0,
            200,
            "{name}"
        );
    }
}

#[tokio::test]
async fn secrets_are_the_owners_only_and_stay_over_a_restart() {
    let running = start().await;
    let kubeconfig = running.dir.path().join("kubeconfig");
    running
        .server
        .write_kubeconfig(&kubeconfig, "https://127.0.0.1:1")
        .unwrap();
    for file in [
        "kubeconfig",
        "pki/token",
        "pki/ca.key",
        "pki/server.key",
        "store.redb",
    ] {
        let mode = std::fs::metadata(running.dir.path().join(file))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600, "{file}");
    }
    let (token, ca) = (
        running.server.token().to_owned(),
        running.server.ca().to_owned(),
    );
    running.server.shutdown();
    running.serving.await.unwrap();
    let again = Server::open(support::config(running.dir.path()))
        .await
        .unwrap();
    assert_eq!(again.token(), token);
    assert_eq!(again.ca(), ca);
}

#[tokio::test]
async fn a_shutdown_ends_watches_and_serving() {
    let running = start().await;
    let token = running.server.token().to_owned();
    let path = "/api/v1/namespaces?watch=true";
    let mut watch = running.open(true, "localhost", path, Some(&token)).await;
    // It is being served when its first events are there.
    watch.body_mut().frame().await.unwrap().unwrap();
    running.server.shutdown();
    watch.into_body().collect().await.unwrap();
    running.serving.await.unwrap();
}
