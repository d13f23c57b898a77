//! Answers the CNI plugin's question whether the policies that select a pod are
//! in force (see [`cni::policy`]): one line asked, one line answered, when it is
//! so and not before. The socket is for root only.

use std::future::Future;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;

use cni::policy::{Answer, LONGEST, Question, VERSION};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};

use crate::admin::socket::{self, Bound};

/// What enforces policies, as far as a pod's start depends on it.
pub(crate) trait Enforcement: Send + Sync {
    /// Ready when all policies that select a pod are in force; an error when
    /// they cannot be, in words.
    fn in_force<'a>(
        &'a self,
        pod: &'a Question,
    ) -> Pin<Box<dyn Future<Output = Result<(), String>> + Send + 'a>>;
}

/// No policy is enforced: whatever selects a pod, all that is enforced of it is
/// in force.
pub(crate) struct Nothing;

impl Enforcement for Nothing {
    fn in_force<'a>(
        &'a self,
        _: &'a Question,
    ) -> Pin<Box<dyn Future<Output = Result<(), String>> + Send + 'a>> {
        Box::pin(std::future::ready(Ok(())))
    }
}

/// Answers at a path until what is returned is dropped and the runtime ends.
///
/// # Errors
/// When it cannot listen there, in words.
pub(crate) fn serve(path: &Path, enforcement: Arc<dyn Enforcement>) -> Result<Bound, String> {
    let (listener, bound) = socket::bind(path)?;
    let listener = UnixListener::from_std(listener)
        .map_err(|error| format!("cannot listen at {}: {error}", path.display()))?;
    tokio::spawn(async move {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    tokio::spawn(answer(stream, enforcement.clone()));
                }
                // A plugin that went away, or no descriptor left for a moment.
                Err(error) => {
                    tracing::warn!("cannot take up a question of the CNI plugin: {error}");
                    tokio::task::yield_now().await;
                }
            }
        }
    });
    Ok(bound)
}

async fn answer(stream: UnixStream, enforcement: Arc<dyn Enforcement>) {
    let (reading, mut writing) = stream.into_split();
    let mut reader = BufReader::new(reading.take(LONGEST));
    let mut line = String::new();
    if !matches!(reader.read_line(&mut line).await, Ok(length) if length > 0) {
        return;
    }
    let answer = match read(&line) {
        Err(error) => refuse(error),
        Ok(question) => tokio::select! {
            outcome = enforcement.in_force(&question) => match outcome {
                Ok(()) => Answer { version: VERSION, in_force: true, error: None },
                Err(error) => refuse(error),
            },
            // A plugin that gave up or was killed is waited for no longer.
            _ = reader.read_u8() => return,
        },
    };
    let mut text = serde_json::to_vec(&answer).expect("an answer is texts and numbers");
    text.push(b'\n');
    // Who asked and went away asks again.
    let _ = writing.write_all(&text).await;
}

fn refuse(error: String) -> Answer {
    Answer {
        version: VERSION,
        in_force: false,
        error: Some(error),
    }
}

fn read(line: &str) -> Result<Question, String> {
    let version = serde_json::from_str::<serde_json::Value>(line)
        .map_err(|error| format!("the question is no JSON: {error}"))?
        .get("version")
        .and_then(serde_json::Value::as_u64);
    if version != Some(VERSION.into()) {
        return Err(format!(
            "this agent speaks version {VERSION} of the protocol only; install the plugin of the \
             agent's own version"
        ));
    }
    serde_json::from_str(line).map_err(|error| format!("the question is not understood: {error}"))
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, Write as _};
    use std::os::unix::fs::PermissionsExt as _;
    use std::time::Duration;

    use cni::policy::Gate;
    use tokio::sync::watch;

    use super::*;

    /// Policies that are in force when the test says so.
    struct When(watch::Receiver<Option<Result<(), String>>>);

    impl Enforcement for When {
        fn in_force<'a>(
            &'a self,
            _: &'a Question,
        ) -> Pin<Box<dyn Future<Output = Result<(), String>> + Send + 'a>> {
            let mut state = self.0.clone();
            Box::pin(async move {
                let state = state.wait_for(Option::is_some).await;
                state
                    .map_err(|error| error.to_string())?
                    .clone()
                    .expect("waited for")
            })
        }
    }

    fn question() -> Question {
        Question {
            version: VERSION,
            network: "podwire".to_owned(),
            attachment: ipam::Attachment::new("one", "eth0"),
            host_interface: "pw0".to_owned(),
            pod: None,
            addresses: vec!["10.200.1.2".parse().unwrap()],
        }
    }

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap()
    }

    #[test]
    fn the_plugin_waits_until_policies_are_in_force() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("cni.sock");
        let runtime = runtime();
        let (say, state) = watch::channel(None);
        let bound = runtime.block_on(async { serve(&socket, Arc::new(When(state))) });
        let bound = bound.unwrap();
        let mode = std::fs::metadata(&socket).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let gate = |seconds| Gate {
            socket: socket.clone(),
            patience: Duration::from_secs(seconds),
        };
        assert_eq!(gate(1).wait(&question()).unwrap_err().code(), 11);
        let waiting = std::thread::spawn({
            let gate = gate(60);
            move || gate.wait(&question())
        });
        say.send(Some(Ok(()))).unwrap();
        waiting.join().unwrap().unwrap();
        say.send(Some(Err("a policy is wrong".to_owned()))).unwrap();
        let error = gate(60).wait(&question()).unwrap_err();
        assert_eq!(error.code(), 50);
        assert!(error.to_string().contains("a policy is wrong"), "{error}");
        drop(bound);
        assert!(!socket.exists());
    }

    #[test]
    fn where_nothing_is_enforced_the_answer_comes_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("cni.sock");
        let runtime = runtime();
        let bound = runtime.block_on(async { serve(&socket, Arc::new(Nothing)) });
        let gate = Gate {
            socket: socket.clone(),
            patience: Duration::from_secs(60),
        };
        gate.probe().unwrap();
        gate.wait(&question()).unwrap();

        // What is no question is refused with the reason.
        for (line, reason) in [
            ("nonsense\n", "no JSON"),
            ("{\"version\":2}\n", "version 1"),
            ("{\"version\":1}\n", "not understood"),
        ] {
            let mut stream = std::os::unix::net::UnixStream::connect(&socket).unwrap();
            stream.write_all(line.as_bytes()).unwrap();
            let mut answer = String::new();
            std::io::BufReader::new(stream)
                .read_line(&mut answer)
                .unwrap();
            assert!(answer.contains(reason), "{line}: {answer}");
        }
        drop(bound);
    }
}
