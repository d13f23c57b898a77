//! Asking an agent, from a command.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use http_body_util::{BodyExt as _, Empty};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

/// How long an agent may take, more than it gives its own parts.
const PATIENCE: Duration = Duration::from_secs(60);

/// Why an agent did not answer a command.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody is there.
    #[error(
        "no podwire agent answers at {path}: {source}; start podwire agent on this node, name its \
         socket with --socket, or ask a lab's with --lab LAB --node NODE", path = .path.display()
    )]
    NoAgent {
        /// The socket.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The socket is root's.
    #[error("asking the agent at {path} needs root; try again with sudo", path = .path.display())]
    NotPermitted {
        /// The socket.
        path: PathBuf,
    },
    /// The agent says why not.
    #[error("{0}")]
    Refused(String),
    /// What is asked for does not exist, says the agent.
    #[error("{0}")]
    NotFound(String),
    /// Somebody answers, but not as an agent does.
    #[error("the agent at {path} cannot be understood: {reason}; is it of the same version?", path = .path.display())]
    Broken {
        /// The socket.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

/// Asks an agent for a snapshot. Blocks, at most a minute.
///
/// # Errors
/// See [`Error`].
pub fn get<T: DeserializeOwned>(
    socket: &Path,
    path: &str,
    parameters: &[(&str, &str)],
) -> Result<T, Error> {
    let body = get_bytes(socket, path, parameters)?;
    serde_json::from_slice(&body).map_err(|error| Error::Broken {
        path: socket.to_owned(),
        reason: error.to_string(),
    })
}

/// Asks an agent for a snapshot and returns its JSON. Blocks, at most a minute.
///
/// # Errors
/// See [`Error`].
pub fn get_bytes(socket: &Path, path: &str, parameters: &[(&str, &str)]) -> Result<Bytes, Error> {
    let broken = |reason: String| Error::Broken {
        path: socket.to_owned(),
        reason,
    };
    let mut target = path.to_owned();
    if !parameters.is_empty() {
        target.push('?');
        target.push_str(
            &form_urlencoded::Serializer::new(String::new())
                .extend_pairs(parameters)
                .finish(),
        );
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| broken(error.to_string()))?;
    runtime.block_on(async {
        tokio::time::timeout(PATIENCE, ask(socket, &target))
            .await
            .unwrap_or_else(|_| {
                let seconds = PATIENCE.as_secs();
                Err(broken(format!("it did not answer within {seconds} s")))
            })
    })
}

async fn ask(socket: &Path, target: &str) -> Result<Bytes, Error> {
    let broken = |error: &dyn std::error::Error| Error::Broken {
        path: socket.to_owned(),
        reason: error.to_string(),
    };
    let stream = UnixStream::connect(socket).await.map_err(|source| {
        let path = socket.to_owned();
        match source.kind() {
            io::ErrorKind::PermissionDenied => Error::NotPermitted { path },
            _ => Error::NoAgent { path, source },
        }
    })?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| broken(&error))?;
    let connection = tokio::spawn(connection);
    let request = http::Request::get(target)
        .header(http::header::HOST, "podwire")
        .body(Empty::<Bytes>::new())
        .map_err(|error| broken(&error))?;
    let response = sender
        .send_request(request)
        .await
        .map_err(|error| broken(&error))?;
    let status = response.status();
    let body = response
        .into_body()
        .collect()
        .await
        .map_err(|error| broken(&error))?
        .to_bytes();
    connection.abort();
    let text = || String::from_utf8_lossy(&body).trim_end().to_owned();
    match status {
        StatusCode::OK => Ok(body),
        StatusCode::NOT_FOUND => Err(Error::NotFound(text())),
        _ => Err(Error::Refused(text())),
    }
}
