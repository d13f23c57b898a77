//! What is said over a lab's `control.sock`: one request and one answer a
//! connection, each a line of JSON with the protocol's version; an answer may
//! carry an open file.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use serde::{Deserialize, Serialize};

use crate::config::{Backend, Proxy};

/// This program's version of the protocol.
const VERSION: u32 = 1;
/// The longest line.
const LONGEST: u64 = 1 << 20;

/// What can be asked of a supervisor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "kebab-case")]
pub(crate) enum Request {
    /// Which nodes there are.
    Status,
    /// A way into a node or another of the lab's namespaces.
    Enter {
        /// A node's name, or `router`, `outside`, `switch`, `control`.
        name: String,
    },
    /// The network of a node.
    Network {
        /// The node's name.
        name: String,
    },
    /// One node more.
    AddNode {
        /// Its name; the next free `node-N` when absent.
        name: Option<String>,
        /// Its subnet, from 0; the next in turn when absent.
        subnet: Option<u32>,
        /// Its back end; the lab's when absent.
        backend: Option<Backend>,
    },
    /// Another way for pods' packets between nodes.
    Backend {
        /// The way.
        backend: Backend,
        /// The node; all, and those to come, when absent.
        node: Option<String>,
    },
    /// Another proxy for Services, on all nodes and those to come.
    Proxy {
        /// Which.
        proxy: Proxy,
    },
    /// One node less. Its Node object is the caller's affair.
    RemoveNode {
        /// Its name.
        name: String,
    },
}

/// What a supervisor answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Answer {
    /// To `Status`.
    Status(Status),
    /// To `Enter`: the file is the pidfd of the node's first process.
    Process,
    /// To `Enter` and `Network`: the file is a network namespace.
    Network,
    /// To `AddNode`.
    Added(NodeStatus),
    /// To `RemoveNode`: no process of it is left.
    Removed,
    /// To `Backend` and `Proxy`: the agents of these nodes were told.
    Told(Vec<String>),
    /// Why not.
    Refused(String),
}

/// What a supervisor knows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Status {
    /// The API server's port on 127.0.0.1.
    pub(crate) port: u16,
    /// The nodes, by number.
    pub(crate) nodes: Vec<NodeStatus>,
}

/// A node as the supervisor knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NodeStatus {
    /// Its name.
    pub(crate) name: String,
    /// Its underlay addresses.
    pub(crate) addresses: Vec<IpAddr>,
    /// Its back end.
    pub(crate) backend: Backend,
    /// Whether its first process runs.
    pub(crate) running: bool,
}

#[derive(Serialize, Deserialize)]
struct Envelope<T> {
    version: u32,
    #[serde(flatten)]
    body: Body<T>,
}

#[derive(Serialize, Deserialize)]
struct Body<T> {
    body: T,
}

fn encode<T: Serialize>(body: T) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(&Envelope {
        version: VERSION,
        body: Body { body },
    })?;
    line.push(b'\n');
    Ok(line)
}

fn decode<T: for<'a> Deserialize<'a>>(line: &[u8]) -> io::Result<T> {
    let invalid = |text: String| io::Error::new(io::ErrorKind::InvalidData, text);
    let value: serde_json::Value = serde_json::from_slice(line)?;
    let version = value.get("version").and_then(serde_json::Value::as_u64);
    if version != Some(u64::from(VERSION)) {
        return Err(invalid(format!(
            "the lab was started by another version of podwire (protocol {}, this one speaks \
             {VERSION}); use that version, or take the lab down and up again",
            version.map_or_else(|| "unknown".into(), |v| v.to_string())
        )));
    }
    let envelope: Envelope<T> = serde_json::from_value(value)?;
    Ok(envelope.body.body)
}

/// Asks the supervisor behind `socket`.
pub(crate) fn ask(socket: &Path, request: &Request) -> io::Result<(Answer, Option<OwnedFd>)> {
    let mut stream = UnixStream::connect(socket)?;
    stream.write_all(&encode(request)?)?;
    let mut line = Vec::new();
    let mut file = None;
    let mut buffer = [0; 4096];
    while !line.ends_with(b"\n") {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = rustix::net::recvmsg(
            &stream,
            &mut [IoSliceMut::new(&mut buffer)],
            &mut control,
            RecvFlags::CMSG_CLOEXEC,
        )?;
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(files) = message {
                file = files.last().or(file);
            }
        }
        if received.bytes == 0 {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the lab's supervisor closed the connection",
            ));
        }
        line.extend_from_slice(&buffer[..received.bytes]);
    }
    Ok((decode(&line)?, file))
}

/// Reads the request of a connection.
pub(crate) fn read_request(stream: &UnixStream) -> io::Result<Request> {
    let mut line = Vec::new();
    let mut reader = io::BufReader::new(stream.take(LONGEST));
    io::BufRead::read_until(&mut reader, b'\n', &mut line)?;
    decode(&line)
}

/// Sends the answer of a connection.
pub(crate) fn send_answer(
    stream: &UnixStream,
    answer: &Answer,
    file: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    let line = encode(answer)?;
    let files: Vec<BorrowedFd<'_>> = file.into_iter().collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !files.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(&files));
    }
    let sent = rustix::net::sendmsg(
        stream.as_fd(),
        &[IoSlice::new(&line)],
        &mut control,
        SendFlags::NOSIGNAL,
    )?;
    let mut stream = stream;
    stream.write_all(&line[sent..])
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    #[test]
    fn a_file_travels_with_the_answer() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sock");
        let listener = UnixListener::bind(&path).unwrap();
        let server = std::thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let request = read_request(&stream).unwrap();
            let file = tempfile::tempfile().unwrap();
            (&file).write_all(b"inside").unwrap();
            send_answer(&stream, &Answer::Process, Some(file.as_fd())).unwrap();
            request
        });
        let wanted = Request::Enter {
            name: "node-1".into(),
        };
        let (answer, file) = ask(&path, &wanted).unwrap();
        assert_eq!(answer, Answer::Process);
        let mut file = std::fs::File::from(file.unwrap());
        let mut text = String::new();
        io::Seek::rewind(&mut file).unwrap();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "inside");
        assert_eq!(server.join().unwrap(), wanted);
    }

    #[test]
    fn another_version_is_named() {
        let error = decode::<Request>(br#"{"version":2,"body":{"op":"status"}}"#).unwrap_err();
        assert!(error.to_string().contains("protocol 2"), "{error}");
        assert!(decode::<Request>(b"{}").is_err());
        assert!(decode::<Request>(br#"{"version":1,"body":{"op":"dance"}}"#).is_err());
        assert_eq!(
            decode::<Request>(br#"{"version":1,"body":{"op":"status"}}"#).unwrap(),
            Request::Status
        );
    }
}
