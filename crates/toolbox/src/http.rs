//! One HTTP request over a connection of its own: what `get` and `curl` share.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Request, Response, header};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpSocket, TcpStream};

/// Why no answer came, in the classes curl knows.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The URL makes no sense.
    Url(String),
    /// The name has no address (of the wanted family).
    Resolve(String),
    /// No connection.
    Connect(String),
    /// The time given was not enough.
    Timeout(String),
    /// The connection broke, or its other end does not speak HTTP.
    Receive(String),
    /// The source address or device can't be used.
    Interface(String),
}

impl Failure {
    pub(crate) fn text(&self) -> &str {
        match self {
            Self::Url(text)
            | Self::Resolve(text)
            | Self::Connect(text)
            | Self::Timeout(text)
            | Self::Receive(text)
            | Self::Interface(text) => text,
        }
    }
}

/// Which addresses may be used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Family {
    #[default]
    Any,
    V4,
    V6,
}

impl Family {
    pub(crate) fn of(v4: bool, v6: bool) -> Self {
        match (v4, v6) {
            (true, false) => Self::V4,
            (false, true) => Self::V6,
            _ => Self::Any,
        }
    }

    fn takes(self, address: IpAddr) -> bool {
        match self {
            Self::Any => true,
            Self::V4 => address.is_ipv4(),
            Self::V6 => address.is_ipv6(),
        }
    }
}

/// The parts of a URL this client needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Url {
    /// Without the brackets of an IPv6 address.
    pub(crate) host: String,
    pub(crate) port: u16,
    /// Path and query, at least `/`.
    pub(crate) target: String,
    /// Host and port as they belong in the Host header.
    pub(crate) authority: String,
}

impl Url {
    /// Parses `[http://]HOST[:PORT][/PATH]`.
    pub(crate) fn parse(text: &str) -> Result<Self, Failure> {
        let wrong = |why: &str| Failure::Url(format!("{text}: {why}"));
        let rest = match text.split_once("://") {
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => rest,
            Some((scheme, _)) => return Err(wrong(&format!("no support for {scheme}, only http"))),
            None => text,
        };
        let rest = rest.split('#').next().unwrap_or(rest);
        let split = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(split);
        let target = if path.starts_with('/') {
            path.to_owned()
        } else {
            format!("/{path}")
        };
        let (host, port) = split_port(authority).ok_or_else(|| wrong("the port is no number"))?;
        if host.is_empty() {
            return Err(wrong("no host in it"));
        }
        Ok(Self {
            host: host.to_owned(),
            port: port.unwrap_or(80),
            target,
            authority: authority.to_owned(),
        })
    }
}

/// Splits `HOST[:PORT]`, taking the brackets off an IPv6 address.
pub(crate) fn split_port(authority: &str) -> Option<(&str, Option<u16>)> {
    let (host, port) = if let Some(rest) = authority.strip_prefix('[') {
        let (host, after) = rest.split_once(']')?;
        match after {
            "" => (host, None),
            _ => (host, Some(after.strip_prefix(':')?)),
        }
    } else if authority.parse::<std::net::Ipv6Addr>().is_ok() {
        (authority, None)
    } else {
        match authority.rsplit_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (authority, None),
        }
    };
    match port {
        None => Some((host, None)),
        Some(port) => port.parse().ok().map(|port| (host, Some(port))),
    }
}

/// How to reach a server.
#[derive(Clone, Debug, Default)]
pub(crate) struct Dial {
    pub(crate) family: Family,
    /// Source address or device name.
    pub(crate) interface: Option<String>,
    pub(crate) timeout: Option<Duration>,
}

/// The addresses of a host; a literal address needs no resolver.
pub(crate) async fn resolve(
    host: &str,
    port: u16,
    family: Family,
) -> Result<Vec<SocketAddr>, Failure> {
    let found: Vec<SocketAddr> = match host.parse::<IpAddr>() {
        Ok(address) => vec![SocketAddr::new(address, port)],
        Err(_) => tokio::net::lookup_host((host, port))
            .await
            .map_err(|_| Failure::Resolve(format!("Could not resolve host: {host}")))?
            .collect(),
    };
    let usable: Vec<SocketAddr> = found
        .into_iter()
        .filter(|address| family.takes(address.ip()))
        .collect();
    if usable.is_empty() {
        return Err(Failure::Resolve(format!(
            "Could not resolve host: {host} has no address of the wanted family"
        )));
    }
    Ok(usable)
}

/// Connects to the first address that answers.
pub(crate) async fn connect(host: &str, port: u16, dial: &Dial) -> Result<TcpStream, Failure> {
    let addresses = resolve(host, port, dial.family).await?;
    let attempt = async {
        let mut last = None;
        for address in addresses {
            let socket = if address.is_ipv4() {
                TcpSocket::new_v4()
            } else {
                TcpSocket::new_v6()
            }
            .map_err(|error| Failure::Connect(error.to_string()))?;
            if let Some(interface) = &dial.interface {
                match interface.parse::<IpAddr>() {
                    Ok(source) if source.is_ipv4() != address.is_ipv4() => continue,
                    Ok(source) => socket.bind(SocketAddr::new(source, 0)),
                    Err(_) => socket.bind_device(Some(interface.as_bytes())),
                }
                .map_err(|error| {
                    Failure::Interface(format!("Failed to bind to {interface}: {error}"))
                })?;
            }
            match socket.connect(address).await {
                Ok(stream) => return Ok(stream),
                Err(error) => last = Some((address, error)),
            }
        }
        Err(match last {
            Some((address, error)) => {
                Failure::Connect(format!("Failed to connect to {address}: {}", plain(&error)))
            }
            None => Failure::Interface("no address of the interface's family".into()),
        })
    };
    match dial.timeout {
        None => attempt.await,
        Some(time) => tokio::time::timeout(time, attempt).await.map_err(|_| {
            Failure::Timeout(format!(
                "Connection to {host} port {port} timed out after {} ms",
                time.as_millis()
            ))
        })?,
    }
}

/// An error's text without the number the standard library adds.
pub(crate) fn plain(error: &io::Error) -> String {
    let text = error.to_string();
    match text.split_once(" (os error") {
        Some((text, _)) => text.to_owned(),
        None => text,
    }
}

/// An answer with its body, and both ends of the connection it came over.
pub(crate) struct Answer {
    pub(crate) head: Response<()>,
    pub(crate) body: Bytes,
    pub(crate) local: SocketAddr,
    pub(crate) remote: SocketAddr,
}

/// Sends one request over a new connection and reads the whole answer. The
/// request needs neither Host nor Connection headers.
pub(crate) async fn exchange(
    url: &Url,
    dial: &Dial,
    mut request: Request<Full<Bytes>>,
) -> Result<Answer, Failure> {
    let stream = connect(&url.host, url.port, dial).await?;
    let ends = stream
        .local_addr()
        .and_then(|local| Ok((local, stream.peer_addr()?)));
    let (local, remote) = ends.map_err(|error| Failure::Receive(plain(&error)))?;
    let broken = |error: hyper::Error| Failure::Receive(broken_text(&error));
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(broken)?;
    let headers = request.headers_mut();
    if !headers.contains_key(header::HOST) {
        let host = header::HeaderValue::from_str(&url.authority)
            .map_err(|_| Failure::Url(format!("{}: no host name", url.authority)))?;
        headers.insert(header::HOST, host);
    }
    let answered = async {
        let response = sender.send_request(request).await.map_err(broken)?;
        let (head, body) = response.into_parts();
        let body = body.collect().await.map_err(broken)?.to_bytes();
        Ok(Answer {
            head: Response::from_parts(head, ()),
            body,
            local,
            remote,
        })
    };
    tokio::pin!(answered);
    tokio::select! {
        answer = &mut answered => answer,
        // The connection ends first when the server closes it after its
        // answer: what has arrived is still to be read.
        _ = connection => answered.await,
    }
}

fn broken_text(error: &hyper::Error) -> String {
    use std::error::Error as _;
    if error.is_incomplete_message() {
        return "Empty reply from server".into();
    }
    match error.source().and_then(|e| e.downcast_ref::<io::Error>()) {
        Some(cause) => plain(cause),
        None => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_taken_apart() {
        for (text, host, port, target) in [
            ("http://10.96.0.20:8080", "10.96.0.20", 8080, "/"),
            ("10.96.0.20:8080/clientip", "10.96.0.20", 8080, "/clientip"),
            ("http://[fd00::1]:81/a?b=c#d", "fd00::1", 81, "/a?b=c"),
            ("http://[fd00::1]/", "fd00::1", 80, "/"),
            ("web?x=1", "web", 80, "/?x=1"),
            ("HTTP://web/", "web", 80, "/"),
        ] {
            let url = Url::parse(text).unwrap();
            assert_eq!(
                (url.host.as_str(), url.port, url.target.as_str()),
                (host, port, target),
                "{text}"
            );
        }
        for text in [
            "",
            "http://",
            "https://web/",
            "http://web:port/",
            "http://web:70000/",
            "http://[fd00::1",
            "http://[fd00::1]x",
            "ftp://web",
        ] {
            assert!(Url::parse(text).is_err(), "{text}");
        }
    }
}
