//! Serving HTTP/1.1, the way everything the agent serves is served: small
//! answers made at once, clients that dawdle turned away.

use std::convert::Infallible;
use std::future::Future;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Method, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;

/// What is asked.
pub(crate) type Request = http::Request<Incoming>;
/// What is answered.
pub(crate) type Response = http::Response<Full<Bytes>>;

/// How long a client may take to send its request.
const PATIENCE: Duration = Duration::from_secs(5);
/// Before connections are accepted again after that failed: out of descriptors,
/// most likely, and nothing tells when one is free.
pub(crate) const BREATH: Duration = Duration::from_millis(100);

/// Serves one connection to its end, in the background.
pub(crate) fn connection<I, H, F>(stream: I, handler: H)
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    H: Fn(Request) -> F + Send + 'static,
    F: Future<Output = Response> + Send + 'static,
{
    tokio::spawn(async move {
        let service = service_fn(move |request| {
            let response = handler(request);
            async move { Ok::<_, Infallible>(response.await) }
        });
        // A client that goes away harms nobody but itself.
        let _ = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(PATIENCE)
            .keep_alive(false)
            .serve_connection(TokioIo::new(stream), service)
            .await;
    });
}

/// An answer in words.
pub(crate) fn text(status: StatusCode, body: impl Into<Bytes>) -> Response {
    answer(status, "text/plain; charset=utf-8", body)
}

/// An answer in JSON.
pub(crate) fn json(status: StatusCode, body: impl Into<Bytes>) -> Response {
    answer(status, "application/json", body)
}

/// An answer of another kind.
pub(crate) fn answer(
    status: StatusCode,
    content_type: &'static str,
    body: impl Into<Bytes>,
) -> Response {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// The refusal of what is no reading request: nothing is changed over HTTP.
pub(crate) fn refusal(request: &Request) -> Option<Response> {
    let reading = [Method::GET, Method::HEAD].contains(request.method());
    (!reading).then(|| text(StatusCode::METHOD_NOT_ALLOWED, "only GET\n"))
}

/// Serves what a listener accepts, until the process ends or this is dropped.
/// Only reading requests reach the handler.
pub(crate) async fn listen<H, F>(listener: TcpListener, handler: H)
where
    H: Fn(Request) -> F + Clone + Send + 'static,
    F: Future<Output = Response> + Send + 'static,
{
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let handler = handler.clone();
                connection(stream, move |request| {
                    let handler = handler.clone();
                    async move {
                        match refusal(&request) {
                            Some(refused) => refused,
                            None => handler(request).await,
                        }
                    }
                });
            }
            Err(error) => {
                tracing::debug!("cannot accept a connection: {error}");
                tokio::time::sleep(BREATH).await;
            }
        }
    }
}
