//! Asking the node's agent whether the policies that select a pod are in force,
//! before the pod is attached: so that it never sends or receives a packet that
//! a policy forbids. Only where the configuration names the agent's socket;
//! otherwise the plugin asks nobody.
//!
//! The protocol: over a Unix stream socket one JSON object a line, each with a
//! `version`; one [`Question`], one [`Answer`], when the policies are in force
//! and not before. The agent may go on (or start) while it is waited for: then
//! the question is asked again.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::net::IpAddr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ipam::{Attachment, Pod};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use serde::{Deserialize, Serialize};

use crate::error::Error;

/// Version of the protocol.
pub const VERSION: u32 = 1;
/// The agent's socket, for root only.
pub const DEFAULT_SOCKET: &str = "/run/podwire/cni.sock";
/// How long the plugin waits for the agent, in seconds, when nothing is
/// configured: shorter than runtimes wait for the plugin.
pub const DEFAULT_SECONDS: u32 = 30;
/// Longest line in bytes.
pub const LONGEST: u64 = 64 * 1024;

/// What the plugin asks: tell me when this pod's policies are in force.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Question {
    /// [`VERSION`].
    pub version: u32,
    /// The network's name.
    pub network: String,
    /// Container and interface.
    #[serde(flatten)]
    pub attachment: Attachment,
    /// Name the node's end of the pod's interface will have.
    pub host_interface: String,
    /// The pod, when the runtime named it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<Pod>,
    /// The addresses it will have.
    pub addresses: Vec<IpAddr>,
}

/// What the agent answers.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Answer {
    /// [`VERSION`].
    pub version: u32,
    /// The policies are in force.
    #[serde(default)]
    pub in_force: bool,
    /// Why they will not be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// Where to ask, and for how long.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gate {
    /// The agent's socket.
    pub socket: PathBuf,
    /// How long to wait.
    pub patience: Duration,
}

/// Why there is no answer yet.
enum Missing {
    /// Nobody listens, or the one who did went away: another may come.
    Agent(io::Error),
    /// The deadline passed while the agent was at it.
    Answer,
    /// Nothing that waiting helps with.
    Sense(Error),
}

impl Gate {
    /// Waits until the policies that select a pod are in force.
    ///
    /// # Errors
    ///
    /// [`Error::TryAgain`] when the deadline passes, [`Error::NotAvailable`]
    /// when the agent refuses or something else answers.
    pub fn wait(&self, question: &Question) -> Result<(), Error> {
        let deadline = Instant::now() + self.patience;
        // Before the first attempt, so that no socket is made unseen.
        let watch = watch(self.socket.parent().unwrap_or(Path::new("/")));
        loop {
            let reason = match self.ask(question, deadline) {
                Ok(()) => return Ok(()),
                Err(Missing::Sense(error)) => return Err(error),
                Err(Missing::Answer) => {
                    return Err(Error::TryAgain(format!(
                        "the node's agent has not put the pod's policies in force within {} s; it \
                         may be busy or cut off from the API server (podwire doctor says)",
                        self.patience.as_secs()
                    )));
                }
                Err(Missing::Agent(reason)) => reason,
            };
            let absent = || {
                Error::TryAgain(format!(
                    "the node's agent does not answer at {}: {reason}; the pod's policies may not \
                     be in force without it: start podwire agent",
                    self.socket.display()
                ))
            };
            let watch = watch.as_ref().map_err(|_| absent())?;
            if !changed(watch, deadline) {
                return Err(absent());
            }
        }
    }

    /// Whether somebody listens.
    ///
    /// # Errors
    ///
    /// [`Error::NotAvailable`] when nobody does.
    pub fn probe(&self) -> Result<(), Error> {
        UnixStream::connect(&self.socket)
            .map(drop)
            .map_err(|error| {
                Error::NotAvailable(format!(
                    "the node's agent does not answer at {}: {error}",
                    self.socket.display()
                ))
            })
    }

    fn ask(&self, question: &Question, deadline: Instant) -> Result<(), Missing> {
        let stream = UnixStream::connect(&self.socket).map_err(Missing::Agent)?;
        let left = || {
            let left = deadline.saturating_duration_since(Instant::now());
            (!left.is_zero()).then_some(left).ok_or(Missing::Answer)
        };
        let mut line = serde_json::to_vec(question).expect("a question is texts and numbers");
        line.push(b'\n');
        stream
            .set_write_timeout(Some(left()?))
            .and_then(|()| (&stream).write_all(&line))
            .map_err(missing)?;
        let mut answer = Vec::new();
        let mut reader = BufReader::new((&stream).take(LONGEST));
        loop {
            stream
                .set_read_timeout(Some(left()?))
                .map_err(Missing::Agent)?;
            // A part of a line may come late: the deadline is the whole line's.
            let part = match reader.fill_buf() {
                Ok(part) => part,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(missing(error)),
            };
            let (taken, whole) = match part.iter().position(|byte| *byte == b'\n') {
                Some(end) => (end, true),
                None => (part.len(), false),
            };
            let ended = part.is_empty();
            answer.extend_from_slice(&part[..taken]);
            reader.consume(taken);
            if whole {
                return judge(&answer).map_err(Missing::Sense);
            }
            if ended && answer.is_empty() {
                return Err(Missing::Agent(io::ErrorKind::UnexpectedEof.into()));
            }
            if ended {
                return Err(Missing::Sense(nonsense(&answer)));
            }
        }
    }
}

fn missing(error: io::Error) -> Missing {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Missing::Answer,
        _ => Missing::Agent(error),
    }
}

fn nonsense(answer: &[u8]) -> Error {
    let text: String = String::from_utf8_lossy(answer).chars().take(100).collect();
    Error::NotAvailable(format!(
        "what listens at the agent's socket answers {text:?}, which is not the protocol's version \
         {VERSION}; is the agent of podwire's version {}?",
        env!("CARGO_PKG_VERSION")
    ))
}

fn judge(line: &[u8]) -> Result<(), Error> {
    let Ok(answer) = serde_json::from_slice::<Answer>(line) else {
        return Err(nonsense(line));
    };
    match answer {
        Answer {
            error: Some(error), ..
        } => Err(Error::NotAvailable(format!(
            "the node's agent cannot put the pod's policies in force: {error}"
        ))),
        Answer {
            version: VERSION,
            in_force: true,
            ..
        } => Ok(()),
        _ => Err(nonsense(line)),
    }
}

/// Tells of sockets that are made in a folder.
fn watch(folder: &Path) -> rustix::io::Result<std::os::fd::OwnedFd> {
    let descriptor = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
    inotify::add_watch(
        &descriptor,
        folder,
        WatchFlags::CREATE | WatchFlags::MOVED_TO | WatchFlags::ATTRIB,
    )?;
    Ok(descriptor)
}

/// Longest time between two questions to an agent that is not there: a socket
/// that is bound and not yet listened on refuses, and nothing tells when that
/// changes.
const AGAIN: Duration = Duration::from_millis(200);

/// Waits for a change, or until it is time to ask again; `false` when the
/// deadline passed.
fn changed(watch: &std::os::fd::OwnedFd, deadline: Instant) -> bool {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return false;
    }
    let Ok(left) = Timespec::try_from(left.min(AGAIN)) else {
        return false;
    };
    let mut descriptors = [PollFd::new(watch, PollFlags::IN)];
    match poll(&mut descriptors, Some(&left)) {
        Ok(0) => true,
        Ok(_) => {
            let mut buffer = [MaybeUninit::uninit(); 4096];
            let mut reader = inotify::Reader::new(watch, &mut buffer);
            while reader.next().is_ok() {}
            true
        }
        // A signal: asking once more does no harm.
        Err(_) => true,
    }
}
