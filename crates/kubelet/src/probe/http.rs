//! HTTP, HTTPS and gRPC probes.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use http_body_util::{BodyExt, Empty, Full, Limited};
use hyper::Request;
use hyper::body::Bytes;
use hyper_util::rt::{TokioExecutor, TokioIo};
use k8s_openapi::api::core::v1 as k8s;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use super::address;

/// As much of an answer as is read.
const BODY_LIMIT: usize = 10 * 1024;

/// Asks by HTTP(S); codes 200 to 399 are success, whatever the certificate, as
/// Kubernetes has it.
pub(crate) async fn get(
    container: &k8s::Container,
    action: &k8s::HTTPGetAction,
    ip: Option<IpAddr>,
) -> Result<(), String> {
    let address = address(container, &action.port, action.host.as_deref(), ip).await?;
    let https = action.scheme.as_deref() == Some("HTTPS");
    let path = match action.path.as_deref().unwrap_or_default() {
        path if path.starts_with('/') => path.to_owned(),
        path => format!("/{path}"),
    };
    let scheme = if https { "https" } else { "http" };
    let url = format!("{scheme}://{address}{path}");
    let fail = |error: &dyn std::fmt::Display| format!("Get \"{url}\": {error}");
    let mut request = Request::get(&path);
    let mut named = (false, false);
    for header in action.http_headers.iter().flatten() {
        named.0 |= header.name.eq_ignore_ascii_case("host");
        named.1 |= header.name.eq_ignore_ascii_case("user-agent");
        request = request.header(&header.name, &header.value);
    }
    if !named.0 {
        request = request.header("host", address.to_string());
    }
    if !named.1 {
        request = request.header("user-agent", "kube-probe/1.34");
    }
    let request = request
        .header("connection", "close")
        .body(Empty::<Bytes>::new())
        .map_err(|error| fail(&error))?;
    let stream = TcpStream::connect(address)
        .await
        .map_err(|error| fail(&error))?;
    let code = if https {
        let connector = tokio_rustls::TlsConnector::from(Arc::new(trusting()?));
        let stream = connector
            .connect(ServerName::IpAddress(address.ip().into()), stream)
            .await
            .map_err(|error| fail(&error))?;
        exchange(stream, request).await
    } else {
        exchange(stream, request).await
    }
    .map_err(|error| fail(&error))?;
    if (200..400).contains(&code) {
        Ok(())
    } else {
        Err(format!("HTTP probe failed with statuscode: {code}"))
    }
}

async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    request: Request<Empty<Bytes>>,
) -> Result<u16, hyper::Error> {
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let answer = async {
        let answer = sender.send_request(request).await?;
        let code = answer.status().as_u16();
        let _ = Limited::new(answer.into_body(), BODY_LIMIT).collect().await;
        Ok(code)
    };
    let mut answer = std::pin::pin!(answer);
    tokio::select! {
        code = &mut answer => code,
        // The connection ends after the answer was handed over.
        _ = connection => answer.await,
    }
}

/// Asks by the gRPC health protocol (grpc.health.v1.Health/Check).
pub(super) async fn grpc_health(address: SocketAddr, service: &str) -> Result<(), String> {
    let fail = |error: &dyn std::fmt::Display| format!("grpc {address}: {error}");
    let stream = TcpStream::connect(address)
        .await
        .map_err(|error| fail(&error))?;
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .map_err(|error| fail(&error))?;
    let request = Request::post(format!("http://{address}/grpc.health.v1.Health/Check"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(Full::new(Bytes::from(health_request(service))))
        .map_err(|error| fail(&error))?;
    let ask = async {
        let answer = sender
            .send_request(request)
            .await
            .map_err(|error| fail(&error))?;
        Limited::new(answer.into_body(), BODY_LIMIT)
            .collect()
            .await
            .map_err(|error| fail(&error))
    };
    let mut ask = std::pin::pin!(ask);
    let body = tokio::select! {
        body = &mut ask => body?,
        _ = connection => ask.await?,
    };
    if is_serving(&body.to_bytes()) {
        Ok(())
    } else {
        Err(fail(&"service is not SERVING"))
    }
}

/// A gRPC message: no compression, length, and the field 1 with the service.
fn health_request(service: &str) -> Vec<u8> {
    let name = &service.as_bytes()[..service.len().min(127)];
    let mut message = Vec::new();
    if !name.is_empty() {
        // The length fits one byte of a varint.
        message.extend([0x0a, u8::try_from(name.len()).unwrap_or(0)]);
        message.extend(name);
    }
    let length = u32::try_from(message.len()).unwrap_or(0);
    let mut frame = vec![0];
    frame.extend(length.to_be_bytes());
    frame.extend(message);
    frame
}

/// Whether the answer's field 1 is SERVING (1).
fn is_serving(frame: &[u8]) -> bool {
    frame.get(5..7) == Some(&[0x08, 0x01])
}

/// TLS that takes any certificate: a probe asks whether there is an answer.
fn trusting() -> Result<rustls::ClientConfig, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = Arc::new(Any(Arc::clone(&provider)));
    rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())
        .map(|builder| {
            builder
                .dangerous()
                .with_custom_certificate_verifier(verifier)
                .with_no_client_auth()
        })
}

#[derive(Debug)]
struct Any(Arc<rustls::crypto::CryptoProvider>);

impl ServerCertVerifier for Any {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    async fn answering(status: &'static str) -> u16 {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut head = [0; 1024];
            let _ = stream.read(&mut head).await;
            let text = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n");
            let _ = stream.write_all(text.as_bytes()).await;
        });
        port
    }

    #[tokio::test]
    async fn codes_from_200_to_399_are_success() {
        for (status, good) in [
            ("200 OK", true),
            ("302 Found", true),
            ("404 Not Found", false),
            ("503 Busy", false),
        ] {
            let port = answering(status).await;
            let action = k8s::HTTPGetAction {
                port: IntOrString::Int(port.into()),
                ..Default::default()
            };
            let got = get(
                &k8s::Container::default(),
                &action,
                Some("127.0.0.1".parse().unwrap()),
            )
            .await;
            assert_eq!(got.is_ok(), good, "{status}: {got:?}");
        }
    }

    #[test]
    fn health_messages_are_framed_as_grpc_has_it() {
        assert_eq!(health_request(""), [0, 0, 0, 0, 0]);
        assert_eq!(health_request("ab"), [0, 0, 0, 0, 4, 0x0a, 2, b'a', b'b']);
        assert!(is_serving(&[0, 0, 0, 0, 2, 0x08, 0x01]));
        assert!(!is_serving(&[0, 0, 0, 0, 2, 0x08, 0x02]));
        assert!(!is_serving(&[0, 0, 0, 0, 0]));
    }
}
