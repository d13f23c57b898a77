//! `toolbox get` and `toolbox connect`: clients that ask many times and count
//! who answered.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use clap::{Args, ValueEnum};
use http_body_util::Full;
use hyper::Request;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};

use crate::http::{self, Dial, Failure, Family, Url};
use crate::{Error, duration, runtime, text};

#[derive(Args, Debug)]
struct Repeat {
    /// How often to ask; with more than one the answers are counted
    #[arg(short = 'n', long, default_value_t = 1)]
    count: u64,
    /// Pause between two
    #[arg(long, value_name = "TIME", value_parser = duration::parse, default_value = "0")]
    interval: Duration,
    /// How long one may take
    #[arg(short, long, value_name = "TIME", value_parser = duration::parse, default_value = "5s")]
    timeout: Duration,
    /// Print one JSON object instead of lines
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    output: Output,
    /// Only IPv4
    #[arg(short = '4', long)]
    ipv4: bool,
    /// Only IPv6
    #[arg(short = '6', long)]
    ipv6: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    Text,
    Json,
}

/// The command line of `toolbox get`.
#[derive(Args, Debug)]
pub(crate) struct GetOptions {
    /// http://HOST[:PORT][/PATH]
    url: String,
    #[command(flatten)]
    repeat: Repeat,
}

/// The command line of `toolbox connect`.
#[derive(Args, Debug)]
pub(crate) struct ConnectOptions {
    /// tcp or udp
    #[arg(value_enum)]
    protocol: Protocol,
    /// HOST:PORT
    to: String,
    /// What to send; the echo ports of toolbox serve answer "hostname" and
    /// "clientip", all else comes back as it was
    #[arg(long, default_value = "hostname")]
    send: String,
    /// Send all over one connection, instead of a new one for each
    #[arg(long)]
    keep: bool,
    #[command(flatten)]
    repeat: Repeat,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Protocol {
    Tcp,
    Udp,
}

/// How often each answer came, and each failure.
#[derive(Debug, Default)]
struct Tally {
    answers: BTreeMap<String, u64>,
    errors: BTreeMap<String, u64>,
}

impl Tally {
    fn add(&mut self, result: Result<String, Failure>) {
        let (counts, key) = match result {
            Ok(answer) => (&mut self.answers, answer),
            Err(failure) => (&mut self.errors, failure.text().to_owned()),
        };
        *counts.entry(key).or_default() += 1;
    }

    fn finish(&self, repeat: &Repeat) -> Result<(), Error> {
        let failed: u64 = self.errors.values().sum();
        let total = failed + self.answers.values().sum::<u64>();
        let shown = if repeat.output == Output::Json {
            let all = serde_json::json!({
                "total": total, "failed": failed,
                "answers": self.answers, "errors": self.errors,
            });
            format!("{all}\n")
        } else if repeat.count == 1 {
            self.answers.keys().map(|a| format!("{a}\n")).collect()
        } else {
            self.answers
                .iter()
                .map(|(answer, count)| format!("{count}\t{answer}\n"))
                .collect()
        };
        text::print(shown.as_bytes())?;
        for (error, count) in &self.errors {
            eprintln!("{count}\t{error}");
        }
        if failed > 0 {
            return Err(Error::Requests { failed, total });
        }
        Ok(())
    }
}

impl Repeat {
    fn dial(&self) -> Dial {
        Dial {
            family: Family::of(self.ipv4, self.ipv6),
            interface: None,
            timeout: None,
        }
    }

    async fn limited<T>(
        &self,
        work: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        tokio::time::timeout(self.timeout, work)
            .await
            .unwrap_or_else(|_| {
                Err(Failure::Timeout(format!(
                    "no answer within {} ms",
                    self.timeout.as_millis()
                )))
            })
    }

    async fn pause(&self, done: u64) {
        if done + 1 < self.count && !self.interval.is_zero() {
            tokio::time::sleep(self.interval).await;
        }
    }
}

pub(crate) fn get(options: &GetOptions) -> Result<(), Error> {
    let url = Url::parse(&options.url).map_err(|f| Error::Usage(f.text().to_owned()))?;
    let repeat = &options.repeat;
    let dial = repeat.dial();
    let tally = runtime()?.block_on(async {
        let mut tally = Tally::default();
        for done in 0..repeat.count {
            let one = async {
                let request = Request::builder()
                    .uri(&url.target)
                    .body(Full::<Bytes>::default())
                    .map_err(|error| Failure::Url(error.to_string()))?;
                let answer = http::exchange(&url, &dial, request).await?;
                let status = answer.head.status();
                let body = String::from_utf8_lossy(&answer.body).trim_end().to_owned();
                if status.is_success() {
                    Ok(body)
                } else {
                    Err(Failure::Receive(format!("{status}: {body}")))
                }
            };
            tally.add(repeat.limited(one).await);
            repeat.pause(done).await;
        }
        tally
    });
    tally.finish(repeat)
}

pub(crate) fn connect(options: &ConnectOptions) -> Result<(), Error> {
    let target = http::split_port(&options.to);
    let Some((host, Some(port))) = target else {
        return Err(Error::Usage(format!(
            "{}: write HOST:PORT, an IPv6 address in brackets",
            options.to
        )));
    };
    let repeat = &options.repeat;
    let tally = runtime()?.block_on(async {
        let mut tally = Tally::default();
        let mut kept = None;
        for done in 0..repeat.count {
            let one = async {
                let mut connection = match kept.take() {
                    Some(connection) => connection,
                    None => Connection::open(options.protocol, host, port, &repeat.dial()).await?,
                };
                let answer = connection.ask(options.send.as_bytes()).await?;
                if options.keep {
                    kept = Some(connection);
                }
                Ok(answer)
            };
            let result = repeat.limited(one).await;
            let broken = options.keep && result.is_err();
            tally.add(result);
            // One kept connection that broke is the news; a second one would
            // hide it.
            if broken {
                break;
            }
            repeat.pause(done).await;
        }
        tally
    });
    tally.finish(repeat)
}

enum Connection {
    Tcp(TcpStream),
    Udp(UdpSocket),
}

impl Connection {
    async fn open(protocol: Protocol, host: &str, port: u16, dial: &Dial) -> Result<Self, Failure> {
        match protocol {
            Protocol::Tcp => http::connect(host, port, dial).await.map(Self::Tcp),
            Protocol::Udp => {
                let failed = |error: std::io::Error| Failure::Connect(http::plain(&error));
                let to = http::resolve(host, port, dial.family).await?;
                // Never empty: resolve says so.
                let to = to[0];
                let any: SocketAddr = if to.is_ipv4() {
                    (Ipv4Addr::UNSPECIFIED, 0).into()
                } else {
                    (Ipv6Addr::UNSPECIFIED, 0).into()
                };
                let socket = UdpSocket::bind(any).await.map_err(failed)?;
                // Connected, so that an ICMP refusal comes back as an error.
                socket.connect(to).await.map_err(failed)?;
                Ok(Self::Udp(socket))
            }
        }
    }

    async fn ask(&mut self, message: &[u8]) -> Result<String, Failure> {
        let failed = |error: std::io::Error| Failure::Receive(http::plain(&error));
        let mut buffer = vec![0; 64 * 1024];
        let length = match self {
            Self::Tcp(stream) => {
                stream.write_all(message).await.map_err(failed)?;
                stream.read(&mut buffer).await.map_err(failed)?
            }
            Self::Udp(socket) => {
                socket.send(message).await.map_err(failed)?;
                socket.recv(&mut buffer).await.map_err(failed)?
            }
        };
        if length == 0 && !message.is_empty() {
            return Err(Failure::Receive("connection closed by the server".into()));
        }
        Ok(String::from_utf8_lossy(&buffer[..length])
            .trim_end()
            .to_owned())
    }
}
