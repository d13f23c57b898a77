//! `toolbox serve`: HTTP that tells who answered and who asked, TCP and UDP echo.

use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use clap::Args;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::{Error, duration, runtime, text};

/// The most bytes `/bytes` sends and `/echo` takes.
const MOST_BYTES: usize = 64 * 1024 * 1024;

/// What `toolbox serve` serves, and where.
#[derive(Args, Debug)]
#[command(after_help = "\
HTTP paths:
  /, /hostname        the host name
  /clientip           the caller's address as the server sees it
  /serverip           the server's address as the connection has it
  /headers            the request as it arrived
  /echo               the request's body, or ?message=TEXT
  /bytes?n=N          N bytes
  /delay?time=200ms   the host name, after a while
  /healthz, /ready    200, or 503 after POST ?ok=false (back with ?ok=true)
  /exit?code=N        the server ends with this exit code

The echo ports answer \"hostname\" and \"clientip\" with the name and the address.
On SIGTERM: /ready turns 503, no new connection is taken after --drain, running
requests are finished, exit code 0.")]
pub(crate) struct Options {
    /// A port for HTTP; may be repeated. 8080 when no port at all is given
    #[arg(long = "http", value_name = "PORT")]
    http: Vec<u16>,
    /// A port for TCP echo; may be repeated
    #[arg(long = "tcp", value_name = "PORT")]
    tcp: Vec<u16>,
    /// A port for UDP echo; may be repeated
    #[arg(long = "udp", value_name = "PORT")]
    udp: Vec<u16>,
    /// The name to answer with, instead of the host name
    #[arg(long)]
    name: Option<String>,
    /// Ready only while this file exists
    #[arg(long, value_name = "FILE")]
    ready_file: Option<PathBuf>,
    /// Start not ready, until POST /ready?ok=true
    #[arg(long)]
    not_ready: bool,
    /// Begin to listen after this time
    #[arg(long, value_name = "TIME", value_parser = duration::parse, default_value = "0")]
    delay: Duration,
    /// Take new connections for this long after SIGTERM
    #[arg(long, value_name = "TIME", value_parser = duration::parse, default_value = "0")]
    drain: Duration,
    /// Give running requests this long to end after SIGTERM
    #[arg(long, value_name = "TIME", value_parser = duration::parse, default_value = "10s")]
    grace: Duration,
}

struct State {
    name: Option<String>,
    ready_file: Option<PathBuf>,
    ready: AtomicBool,
    healthy: AtomicBool,
}

impl State {
    fn name(&self) -> String {
        self.name.clone().unwrap_or_else(text::hostname)
    }

    fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Relaxed)
            && self.ready_file.as_ref().is_none_or(|file| file.exists())
    }
}

pub(crate) fn run(options: Options) -> Result<(), Error> {
    runtime()?.block_on(serve(options))
}

async fn serve(mut options: Options) -> Result<(), Error> {
    // Before anything is open to the world: a signal must never be missed.
    let mut terminate = signal(SignalKind::terminate()).map_err(Error::Start)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(Error::Start)?;
    if options.http.is_empty() && options.tcp.is_empty() && options.udp.is_empty() {
        options.http.push(8080);
    }
    let state = Arc::new(State {
        name: options.name,
        ready_file: options.ready_file,
        ready: AtomicBool::new(!options.not_ready),
        healthy: AtomicBool::new(true),
    });
    if !options.delay.is_zero() {
        tokio::select! {
            () = tokio::time::sleep(options.delay) => {}
            _ = terminate.recv() => return Ok(()),
            _ = interrupt.recv() => return Ok(()),
        }
    }

    let (stop, stopped) = watch::channel(false);
    let mut listeners = JoinSet::new();
    for &port in &options.http {
        let listener = listen_tcp(port)?;
        let (state, stopped) = (Arc::clone(&state), stopped.clone());
        listeners.spawn(accept(listener, stopped, move |stream, peer, stopped| {
            answer_http(stream, peer, Arc::clone(&state), stopped)
        }));
    }
    for &port in &options.tcp {
        let listener = listen_tcp(port)?;
        let (state, stopped) = (Arc::clone(&state), stopped.clone());
        listeners.spawn(accept(listener, stopped, move |stream, peer, stopped| {
            echo_tcp(stream, peer, Arc::clone(&state), stopped)
        }));
    }
    for &port in &options.udp {
        let socket = listen_udp(port)?;
        listeners.spawn(echo_udp(socket, Arc::clone(&state), stopped.clone()));
    }
    drop(stopped);

    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    state.ready.store(false, Ordering::Relaxed);
    if !options.drain.is_zero() {
        tokio::time::sleep(options.drain).await;
    }
    stop.send_replace(true);
    // What is still running after the grace is cut off, as the caller asked.
    let _ = tokio::time::timeout(options.grace, async {
        while listeners.join_next().await.is_some() {}
    })
    .await;
    Ok(())
}

/// Both families on one socket where the machine has IPv6.
fn addresses(port: u16) -> [SocketAddr; 2] {
    [
        (Ipv6Addr::UNSPECIFIED, port).into(),
        (Ipv4Addr::UNSPECIFIED, port).into(),
    ]
}

fn listen_tcp(port: u16) -> Result<TcpListener, Error> {
    std::net::TcpListener::bind(&addresses(port)[..])
        .and_then(|listener| {
            listener.set_nonblocking(true)?;
            TcpListener::from_std(listener)
        })
        .map_err(|source| Error::Listen {
            protocol: "TCP",
            port,
            source,
        })
}

fn listen_udp(port: u16) -> Result<UdpSocket, Error> {
    std::net::UdpSocket::bind(&addresses(port)[..])
        .and_then(|socket| {
            socket.set_nonblocking(true)?;
            UdpSocket::from_std(socket)
        })
        .map_err(|source| Error::Listen {
            protocol: "UDP",
            port,
            source,
        })
}

/// Waits until the server is to stop.
async fn stop(stopped: &mut watch::Receiver<bool>) {
    // An error means that the server itself is gone.
    let _ = stopped.wait_for(|stop| *stop).await;
}

/// Takes connections until it is told to stop, then waits for those it has.
async fn accept<F, W>(listener: TcpListener, mut stopped: watch::Receiver<bool>, work: F)
where
    F: Fn(TcpStream, SocketAddr, watch::Receiver<bool>) -> W,
    W: Future<Output = ()> + Send + 'static,
{
    let mut connections = JoinSet::new();
    let handed_on = stopped.clone();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) => {
                    connections.spawn(work(stream, canonical(peer), handed_on.clone()));
                }
                // Out of file descriptors: wait until a connection has ended
                // instead of spinning; with none, others hold them.
                Err(_) => if connections.join_next().await.is_none() {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                },
            },
            Some(_) = connections.join_next() => {}
            () = stop(&mut stopped) => break,
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

/// An IPv4 caller of a socket for both families shows as IPv4.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

async fn answer_http(
    stream: TcpStream,
    peer: SocketAddr,
    state: Arc<State>,
    mut stopped: watch::Receiver<bool>,
) {
    let local = stream.local_addr().map(canonical).ok();
    let service = service_fn(|request| {
        let state = Arc::clone(&state);
        async move { Ok::<_, Infallible>(respond(request, peer, local, &state).await) }
    });
    let connection =
        hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    // A client that breaks off is the client's affair, hence no error anywhere.
    tokio::select! {
        _ = connection.as_mut() => return,
        () = stop(&mut stopped) => {}
    }
    connection.as_mut().graceful_shutdown();
    let _ = connection.await;
}

/// The value of a query parameter; `+` and `%xx` decoded.
fn parameter(query: &str, name: &str) -> Option<String> {
    query.split('&').find_map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (key == name).then(|| decode(value))
    })
}

fn decode(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        let hex = |digit: u8| (digit as char).to_digit(16);
        rest = match (*first, after) {
            (b'%', [high, low, behind @ ..]) => match (hex(*high), hex(*low)) {
                (Some(high), Some(low)) => {
                    bytes.push((high * 16 + low) as u8);
                    behind
                }
                _ => {
                    bytes.push(b'%');
                    after
                }
            },
            (b'+', _) => {
                bytes.push(b' ');
                after
            }
            (other, _) => {
                bytes.push(other);
                after
            }
        };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

async fn respond(
    request: Request<Incoming>,
    peer: SocketAddr,
    local: Option<SocketAddr>,
    state: &State,
) -> Response<Full<Bytes>> {
    let query = request.uri().query().unwrap_or("").to_owned();
    let ask = |name: &str| parameter(&query, name);
    let path = request.uri().path().to_owned();
    match path.as_str() {
        "/" | "/hostname" => plain(StatusCode::OK, format!("{}\n", state.name())),
        "/clientip" => plain(StatusCode::OK, format!("{}\n", peer.ip())),
        "/serverip" => plain(
            StatusCode::OK,
            local.map_or_else(|| "unknown\n".into(), |local| format!("{}\n", local.ip())),
        ),
        "/headers" => plain(StatusCode::OK, head(&request)),
        "/echo" => match ask("message") {
            Some(message) => plain(StatusCode::OK, message),
            None => echo_body(request).await,
        },
        "/bytes" => match ask("n").map_or(Ok(0), |n| n.parse::<usize>()) {
            Ok(count) if count <= MOST_BYTES => plain(StatusCode::OK, vec![b'x'; count]),
            _ => plain(
                StatusCode::BAD_REQUEST,
                format!("n must be a number up to {MOST_BYTES}\n"),
            ),
        },
        "/delay" => match duration::parse(&ask("time").unwrap_or_default()) {
            Ok(time) => {
                tokio::time::sleep(time).await;
                plain(StatusCode::OK, format!("{}\n", state.name()))
            }
            Err(why) => plain(StatusCode::BAD_REQUEST, format!("time: {why}\n")),
        },
        "/healthz" => switch(&request, &state.healthy, ask("ok"), |on| on),
        "/ready" => switch(&request, &state.ready, ask("ok"), |_| state.is_ready()),
        "/exit" => match ask("code").map_or(Ok(0), |code| code.parse::<u8>()) {
            // The point of this path is a crash: nothing is tidied up.
            Ok(code) => std::process::exit(i32::from(code)),
            Err(_) => plain(StatusCode::BAD_REQUEST, "code must be 0 to 255\n"),
        },
        _ => plain(
            StatusCode::NOT_FOUND,
            format!("no such path: {path}; see toolbox serve --help\n"),
        ),
    }
}

fn switch(
    request: &Request<Incoming>,
    flag: &AtomicBool,
    ok: Option<String>,
    holds: impl Fn(bool) -> bool,
) -> Response<Full<Bytes>> {
    if request.method() == Method::POST || request.method() == Method::PUT {
        match ok.as_deref() {
            Some("true" | "1") | None => flag.store(true, Ordering::Relaxed),
            Some("false" | "0") => flag.store(false, Ordering::Relaxed),
            Some(_) => return plain(StatusCode::BAD_REQUEST, "ok must be true or false\n"),
        }
        return plain(StatusCode::OK, "set\n");
    }
    if holds(flag.load(Ordering::Relaxed)) {
        plain(StatusCode::OK, "ok\n")
    } else {
        plain(StatusCode::SERVICE_UNAVAILABLE, "not ok\n")
    }
}

fn head(request: &Request<Incoming>) -> String {
    let mut lines = format!(
        "{} {} {:?}\n",
        request.method(),
        request.uri(),
        request.version()
    );
    for (name, value) in request.headers() {
        lines.push_str(name.as_str());
        lines.push_str(": ");
        lines.push_str(&String::from_utf8_lossy(value.as_bytes()));
        lines.push('\n');
    }
    lines
}

async fn echo_body(request: Request<Incoming>) -> Response<Full<Bytes>> {
    let limited = http_body_util::Limited::new(request.into_body(), MOST_BYTES);
    match limited.collect().await {
        Ok(body) => plain(StatusCode::OK, body.to_bytes()),
        Err(error) => plain(StatusCode::BAD_REQUEST, format!("{error}\n")),
    }
}

fn plain(status: StatusCode, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(
        hyper::header::CONTENT_TYPE,
        hyper::header::HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    response
}

/// What an echo port answers.
fn echo(message: &[u8], peer: SocketAddr, state: &State) -> Option<String> {
    match message.trim_ascii_end() {
        b"hostname" => Some(format!("{}\n", state.name())),
        b"clientip" => Some(format!("{}\n", peer.ip())),
        _ => None,
    }
}

async fn echo_tcp(
    mut stream: TcpStream,
    peer: SocketAddr,
    state: Arc<State>,
    mut stopped: watch::Receiver<bool>,
) {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let length = tokio::select! {
            read = stream.read(&mut buffer) => match read {
                Ok(0) | Err(_) => return,
                Ok(length) => length,
            },
            () = stop(&mut stopped) => return,
        };
        let message = &buffer[..length];
        let sent = match echo(message, peer, &state) {
            Some(answer) => stream.write_all(answer.as_bytes()).await,
            None => stream.write_all(message).await,
        };
        if sent.is_err() {
            return;
        }
    }
}

async fn echo_udp(socket: UdpSocket, state: Arc<State>, mut stopped: watch::Receiver<bool>) {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let (length, peer) = tokio::select! {
            received = socket.recv_from(&mut buffer) => match received {
                Ok(received) => received,
                // An ICMP error of an earlier answer; the next one may do.
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => continue,
                Err(_) => return,
            },
            () = stop(&mut stopped) => return,
        };
        let message = &buffer[..length];
        // A datagram that can't be sent is lost, as datagrams are.
        let _ = match echo(message, canonical(peer), &state) {
            Some(answer) => socket.send_to(answer.as_bytes(), peer).await,
            None => socket.send_to(message, peer).await,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn query_parameters_are_decoded() {
        assert_eq!(parameter("a=1&b=x+y%2Fz", "b").as_deref(), Some("x y/z"));
        assert_eq!(parameter("a=%zz%4", "a").as_deref(), Some("%zz%4"));
        assert_eq!(parameter("a", "a").as_deref(), Some(""));
        assert_eq!(parameter("a=1", "b"), None);
    }
}
