//! Where the logs of containers come from.

use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;

use bytes::Bytes;
use futures::Stream;
use jiff::Timestamp;
use rustix::fs::inotify;
use serde_json::Value;
use tokio::fs::File;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncSeekExt, BufReader};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::object;

/// What part of a log is wanted, and how.
#[derive(Debug, Clone, Default)]
pub struct LogOptions {
    /// Go on with what is written from now on, until the container ends.
    pub follow: bool,
    /// The log of the container's run before the present one.
    pub previous: bool,
    /// Only that many lines from the end.
    pub tail_lines: Option<u64>,
    /// Only lines since then.
    pub since: Option<Timestamp>,
    /// Begin each line with its time.
    pub timestamps: bool,
    /// End after that many bytes.
    pub limit_bytes: Option<u64>,
}

/// A log as it is sent.
pub type LogStream = Pin<Box<dyn Stream<Item = io::Result<Bytes>> + Send>>;
/// Becomes ready when the container has ended.
pub type Ended = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Why there is no log.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The container has not run before.
    #[error("previous terminated container {container:?} in pod {pod:?} not found")]
    NoPrevious {
        /// The container.
        container: String,
        /// The pod.
        pod: String,
    },
    /// The log cannot be read.
    #[error("cannot read the log of container {container:?} in {path}: {source}")]
    Unreadable {
        /// The container.
        container: String,
        /// Where its logs are.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// Gives access to the logs of containers.
pub trait LogSource: Send + Sync + 'static {
    /// Opens the log of a container of a pod. With `follow`, the stream goes
    /// on until `ended` is ready and all that was written is sent.
    ///
    /// # Errors
    /// When there is no such log or it cannot be read.
    fn open(
        &self,
        pod: &Value,
        container: &str,
        options: LogOptions,
        ended: Ended,
    ) -> Result<LogStream, LogError>;
}

/// Logs in files of the container runtime interface's format, as kubelets
/// write them: `ROOT/NAMESPACE_NAME_UID/CONTAINER/N.log`.
pub struct FileLogs {
    root: Box<dyn Fn(&str) -> PathBuf + Send + Sync>,
}

impl FileLogs {
    /// Logs below a directory per node; `root` is given the node's name and
    /// names what is `/var/log/pods` there.
    ///
    /// To follow a log the kernel must see its writes through the same mount:
    /// the upper directory of an overlay is not the same, but the node's own
    /// root under `/proc/PID/root` is.
    pub fn new(root: impl Fn(&str) -> PathBuf + Send + Sync + 'static) -> Self {
        Self {
            root: Box::new(root),
        }
    }
}

impl LogSource for FileLogs {
    fn open(
        &self,
        pod: &Value,
        container: &str,
        options: LogOptions,
        ended: Ended,
    ) -> Result<LogStream, LogError> {
        let directory = (self.root)(object::text(pod, "/spec/nodeName"))
            .join(format!(
                "{}_{}_{}",
                object::namespace(pod),
                object::name(pod),
                object::uid(pod)
            ))
            .join(container);
        let runs = runs(&directory).map_err(|source| LogError::Unreadable {
            container: container.to_owned(),
            path: directory.clone(),
            source,
        })?;
        let run = if options.previous {
            if runs.len() < 2 {
                return Err(LogError::NoPrevious {
                    container: container.to_owned(),
                    pod: object::name(pod).to_owned(),
                });
            }
            runs[runs.len() - 2]
        } else {
            runs.last().copied().unwrap_or(0)
        };
        let path = directory.join(format!("{run}.log"));
        let (output, lines) = mpsc::channel(8);
        tokio::spawn(async move {
            if let Err(error) = copy(&path, &options, &output, ended).await {
                // Nobody reads any more if this fails.
                drop(output.send(Err(error)).await);
            }
        });
        Ok(Box::pin(ReceiverStream::new(lines)))
    }
}

/// The numbers of a container's runs that left a log, rising.
fn runs(directory: &Path) -> io::Result<Vec<u64>> {
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(e),
    };
    let mut runs: Vec<u64> = entries
        .filter_map(|e| {
            let name = e.ok()?.file_name();
            name.to_str()?.strip_suffix(".log")?.parse().ok()
        })
        .collect();
    runs.sort_unstable();
    Ok(runs)
}

/// Tells of writes to one file.
struct Writes {
    inotify: AsyncFd<std::os::fd::OwnedFd>,
}

impl Writes {
    fn watch(path: &Path) -> io::Result<Self> {
        let fd = inotify::init(inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC)?;
        inotify::add_watch(&fd, path, inotify::WatchFlags::MODIFY)?;
        #[expect(
            deprecated,
            reason = "its fault is with types whose descriptor can change; an OwnedFd's cannot, and the successor is unsafe"
        )]
        let inotify = AsyncFd::new(fd)?;
        Ok(Self { inotify })
    }

    /// Waits for the next write.
    async fn next(&self) -> io::Result<()> {
        let mut ready = self.inotify.readable().await?;
        let mut events = [0; 4096];
        // What the events say does not matter.
        while rustix::io::read(self.inotify.get_ref(), &mut events).is_ok() {}
        ready.clear_ready();
        Ok(())
    }
}

/// Copies a log until its end, or until the container's.
async fn copy(
    path: &Path,
    options: &LogOptions,
    output: &mpsc::Sender<io::Result<Bytes>>,
    mut ended: Ended,
) -> io::Result<()> {
    let mut file = match File::open(path).await {
        Ok(file) => file,
        // The container has written nothing yet or its log is gone.
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e),
    };
    if let Some(lines) = options.tail_lines {
        let start = tail_start(&mut file, lines).await?;
        file.seek(io::SeekFrom::Start(start)).await?;
    }
    // Before the first read, so that no write is missed.
    let writes = options.follow.then(|| Writes::watch(path)).transpose()?;
    let mut reader = BufReader::with_capacity(64 * 1024, file);
    let mut formatter = Formatter::new(options);
    let mut record = Vec::new();
    let mut last_look = false;
    loop {
        let mut chunk = Vec::new();
        let mut at_end = false;
        while chunk.len() < 64 * 1024 {
            let read = reader.read_until(b'\n', &mut record).await?;
            if record.last() == Some(&b'\n') {
                formatter.push(&record, &mut chunk);
                record.clear();
            } else {
                // Half a record at the end of the file: the rest comes later.
                at_end = read == 0 || !record.is_empty();
                if at_end {
                    break;
                }
            }
        }
        let full = formatter.limit(&mut chunk);
        if !chunk.is_empty() && output.send(Ok(chunk.into())).await.is_err() {
            return Ok(());
        }
        if full {
            return Ok(());
        }
        if !at_end {
            continue;
        }
        let Some(writes) = &writes else { return Ok(()) };
        if last_look {
            return Ok(());
        }
        tokio::select! {
            written = writes.next() => written?,
            () = &mut ended => last_look = true,
            () = output.closed() => return Ok(()),
        }
    }
}

/// Where the last so many lines of a file start.
async fn tail_start(file: &mut File, lines: u64) -> io::Result<u64> {
    const BLOCK: u64 = 64 * 1024;
    let length = file.metadata().await?.len();
    if lines == 0 {
        return Ok(length);
    }
    let mut found = 0;
    let mut end = length;
    let mut block = Vec::new();
    while end > 0 {
        let start = end.saturating_sub(BLOCK);
        block.resize(usize::try_from(end - start).unwrap_or(0), 0);
        file.seek(io::SeekFrom::Start(start)).await?;
        file.read_exact(&mut block).await?;
        for (i, byte) in block.iter().enumerate().rev() {
            let position = start + i as u64;
            // The newline at the very end closes the last line.
            if *byte == b'\n' && position + 1 != length {
                found += 1;
                if found == lines {
                    return Ok(position + 1);
                }
            }
        }
        end = start;
    }
    Ok(0)
}

/// Turns records of the file into the lines that clients see.
struct Formatter {
    since: Option<Timestamp>,
    timestamps: bool,
    left: Option<u64>,
    /// The next record continues a line.
    within_line: bool,
}

impl Formatter {
    fn new(options: &LogOptions) -> Self {
        Self {
            since: options.since,
            timestamps: options.timestamps,
            left: options.limit_bytes,
            within_line: false,
        }
    }

    /// `TIME STREAM TAG TEXT`: the tag is F for a whole line, P for a part.
    /// What does not have this form is passed on as it is.
    fn push(&mut self, record: &[u8], out: &mut Vec<u8>) {
        let mut parts = record.splitn(4, |b| *b == b' ');
        let (Some(time), Some(_stream), Some(tag), Some(text)) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            out.extend_from_slice(record);
            return;
        };
        if let Some(since) = self.since
            && let Some(time) = std::str::from_utf8(time)
                .ok()
                .and_then(|t| t.parse::<Timestamp>().ok())
            && time < since
        {
            return;
        }
        let partial = tag.first() == Some(&b'P');
        if self.timestamps && !self.within_line {
            out.extend_from_slice(time);
            out.push(b' ');
        }
        let text = if partial {
            text.strip_suffix(b"\n").unwrap_or(text)
        } else {
            text
        };
        out.extend_from_slice(text);
        self.within_line = partial;
    }

    /// Cuts a chunk to the limit; true when the limit is reached.
    fn limit(&mut self, chunk: &mut Vec<u8>) -> bool {
        let Some(left) = &mut self.left else {
            return false;
        };
        chunk.truncate(usize::try_from(*left).unwrap_or(usize::MAX));
        *left -= chunk.len() as u64;
        *left == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::StreamExt;
    use serde_json::json;
    use std::io::Write;

    const LOG: &str = "2026-01-01T00:00:01.000000000Z stdout F one\n\
        2026-01-01T00:00:02.000000000Z stdout P tw\n\
        2026-01-01T00:00:02.100000000Z stdout F o\n\
        2026-01-01T00:00:03.000000000Z stderr F three\n";

    struct Fixture {
        dir: tempfile::TempDir,
        pod: Value,
    }

    impl Fixture {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let logs = dir.path().join("n1/ns_web_u1/app");
            std::fs::create_dir_all(&logs).unwrap();
            std::fs::write(logs.join("0.log"), "2026-01-01T00:00:00Z stdout F old\n").unwrap();
            std::fs::write(logs.join("1.log"), LOG).unwrap();
            let pod = json!({
                "metadata": {"namespace": "ns", "name": "web", "uid": "u1"},
                "spec": {"nodeName": "n1"},
            });
            Self { dir, pod }
        }

        fn open(&self, options: LogOptions, ended: Ended) -> LogStream {
            let root = self.dir.path().to_owned();
            FileLogs::new(move |node| root.join(node))
                .open(&self.pod, "app", options, ended)
                .unwrap()
        }

        async fn text(&self, options: LogOptions) -> String {
            let chunks: Vec<_> = self
                .open(options, Box::pin(std::future::pending()))
                .collect()
                .await;
            let bytes: Vec<u8> = chunks.into_iter().flat_map(|c| c.unwrap()).collect();
            String::from_utf8(bytes).unwrap()
        }
    }

    #[tokio::test]
    async fn partial_records_are_joined_to_lines() {
        let text = Fixture::new().text(LogOptions::default()).await;
        assert_eq!(text, "one\ntwo\nthree\n");
    }

    #[tokio::test]
    async fn tail_since_timestamps_limit_and_previous_select() {
        let fixture = Fixture::new();
        let options = LogOptions::default();
        let tail = LogOptions {
            tail_lines: Some(1),
            ..options.clone()
        };
        assert_eq!(fixture.text(tail).await, "three\n");
        let none = LogOptions {
            tail_lines: Some(0),
            ..options.clone()
        };
        assert_eq!(fixture.text(none).await, "");
        let since = LogOptions {
            since: Some("2026-01-01T00:00:02.5Z".parse().unwrap()),
            timestamps: true,
            ..options.clone()
        };
        assert_eq!(
            fixture.text(since).await,
            "2026-01-01T00:00:03.000000000Z three\n"
        );
        let limit = LogOptions {
            limit_bytes: Some(5),
            ..options.clone()
        };
        assert_eq!(fixture.text(limit).await, "one\nt");
        let previous = LogOptions {
            previous: true,
            ..options
        };
        assert_eq!(fixture.text(previous).await, "old\n");
    }

    #[tokio::test]
    async fn following_ends_with_the_container_and_loses_nothing() {
        let fixture = Fixture::new();
        let (end, ended) = tokio::sync::oneshot::channel::<()>();
        let options = LogOptions {
            follow: true,
            ..LogOptions::default()
        };
        let mut stream = fixture.open(
            options,
            Box::pin(async {
                let _dropped = ended.await;
            }),
        );
        let first = stream.next().await.unwrap().unwrap();
        assert_eq!(&first[..], b"one\ntwo\nthree\n");
        let path = fixture.dir.path().join("n1/ns_web_u1/app/1.log");
        let mut file = std::fs::OpenOptions::new().append(true).open(path).unwrap();
        // A record that arrives in two writes is one line.
        file.write_all(b"2026-01-01T00:00:04Z stdout F fo").unwrap();
        file.write_all(b"ur\n").unwrap();
        let mut got = Vec::new();
        while got != b"four\n" {
            got.extend_from_slice(&stream.next().await.unwrap().unwrap());
        }
        file.write_all(b"2026-01-01T00:00:05Z stdout F five\n")
            .unwrap();
        end.send(()).unwrap();
        let rest: Vec<_> = stream.collect().await;
        let rest: Vec<u8> = rest.into_iter().flat_map(|c| c.unwrap()).collect();
        assert_eq!(rest, b"five\n");
    }
}
