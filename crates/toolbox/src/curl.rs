//! The part of curl that examples, probes and people in a hurry use: its
//! options by the same letters, its exit codes, its messages.

use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use bytes::Bytes;
use clap::Args;
use http_body_util::Full;
use hyper::header::{self, HeaderName, HeaderValue};
use hyper::{Method, Request};

use crate::http::{self, Answer, Dial, Failure, Family, Url};
use crate::{Error, runtime, text};

/// The command line.
#[derive(Args, Debug)]
pub(crate) struct Options {
    /// The URLs, http only
    #[arg(required = true)]
    urls: Vec<String>,
    /// Print no errors
    #[arg(short, long)]
    silent: bool,
    /// Print errors, even with -s
    #[arg(short = 'S', long)]
    show_error: bool,
    /// Fail without a body when the server answers 400 or above (exit code 22)
    #[arg(short, long)]
    fail: bool,
    /// Write the body to a file
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Print the answer's head too
    #[arg(short = 'i', long)]
    include: bool,
    /// Ask for the head only
    #[arg(short = 'I', long)]
    head: bool,
    /// Print this after the answer; knows %{http_code}, %{remote_ip},
    /// %{remote_port}, %{local_ip}, %{local_port}, %{size_download},
    /// %{time_total}
    #[arg(short, long, value_name = "FORMAT")]
    write_out: Option<String>,
    /// The whole must not take longer than this many seconds
    #[arg(short, long, value_name = "SECONDS", value_parser = seconds)]
    max_time: Option<Duration>,
    /// Connecting must not take longer than this many seconds
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    connect_timeout: Option<Duration>,
    /// Only IPv4
    #[arg(short = '4', long)]
    ipv4: bool,
    /// Only IPv6
    #[arg(short = '6', long)]
    ipv6: bool,
    /// The source: an address or the name of a device
    #[arg(long, value_name = "NAME")]
    interface: Option<String>,
    /// The method
    #[arg(short = 'X', long, value_name = "METHOD")]
    request: Option<String>,
    /// A header, "Name: value"; may be repeated
    #[arg(short = 'H', long, value_name = "HEADER")]
    header: Vec<String>,
    /// Send this as the body of a POST
    #[arg(short, long, value_name = "TEXT", allow_hyphen_values = true)]
    data: Option<String>,
    /// Take brackets in URLs as they are (they always are)
    #[arg(short, long)]
    globoff: bool,
}

fn seconds(text: &str) -> Result<Duration, String> {
    text.parse::<f64>()
        .ok()
        .and_then(|number| Duration::try_from_secs_f64(number).ok())
        .ok_or_else(|| format!("{text:?} is no number of seconds"))
}

/// curl's exit code of each way to fail.
fn code(failure: &Failure) -> u8 {
    match failure {
        Failure::Url(_) => 3,
        Failure::Resolve(_) => 6,
        Failure::Connect(_) => 7,
        Failure::Timeout(_) => 28,
        Failure::Interface(_) => 45,
        Failure::Receive(text) if text == "Empty reply from server" => 52,
        Failure::Receive(_) => 56,
    }
}

pub(crate) fn run(options: &Options) -> Result<(), Error> {
    runtime()?.block_on(async {
        let mut last = Ok(());
        for url in &options.urls {
            last = fetch(options, url).await;
            // As curl does, the last one's result counts; each one's error is
            // shown when it happens.
            if let Err(error) = &last
                && options.urls.len() > 1
                && !error.is_silent()
            {
                eprintln!("curl: {error}");
            }
        }
        match last {
            Err(error) if options.urls.len() > 1 => Err(Error::Exit(error.exit_code())),
            other => other,
        }
    })
}

async fn fetch(options: &Options, url: &str) -> Result<(), Error> {
    let fail = |code: u8, message: String| Error::Curl {
        code,
        message,
        silent: options.silent && !options.show_error,
    };
    let started = Instant::now();
    let exchange = async {
        let url = Url::parse(url)?;
        let request = request(options, &url)?;
        let dial = Dial {
            family: Family::of(options.ipv4, options.ipv6),
            interface: options.interface.clone(),
            timeout: options.connect_timeout,
        };
        http::exchange(&url, &dial, request).await
    };
    let result = match options.max_time.filter(|time| !time.is_zero()) {
        None => exchange.await,
        Some(time) => tokio::time::timeout(time, exchange)
            .await
            .unwrap_or_else(|_| {
                Err(Failure::Timeout(format!(
                    "Operation timed out after {} milliseconds",
                    time.as_millis()
                )))
            }),
    };
    let taken = started.elapsed();
    let mut outcome = Ok(());
    match &result {
        Ok(answer) => {
            let status = answer.head.status();
            if options.fail && status.as_u16() >= 400 {
                outcome = Err(fail(
                    22,
                    format!("The requested URL returned error: {}", status.as_u16()),
                ));
            } else {
                deliver(options, answer)?;
            }
        }
        Err(failure) => outcome = Err(fail(code(failure), failure.text().to_owned())),
    }
    if let Some(format) = &options.write_out {
        text::print(expand(format, result.as_ref().ok(), taken).as_bytes())?;
    }
    outcome
}

fn request(options: &Options, url: &Url) -> Result<Request<Full<Bytes>>, Failure> {
    let method = match (&options.request, options.head, &options.data) {
        (Some(method), ..) => Method::from_bytes(method.as_bytes())
            .map_err(|_| Failure::Url(format!("{method} is no method")))?,
        (None, true, _) => Method::HEAD,
        (None, false, Some(_)) => Method::POST,
        (None, false, None) => Method::GET,
    };
    let body = options.data.clone().unwrap_or_default();
    let mut request = Request::builder()
        .method(method)
        .uri(&url.target)
        .header(header::USER_AGENT, "podwire-toolbox")
        .header(header::ACCEPT, "*/*")
        .body(Full::new(Bytes::from(body)))
        .map_err(|error| Failure::Url(format!("{}: {error}", url.target)))?;
    let headers = request.headers_mut();
    if options.data.is_some() {
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/x-www-form-urlencoded"),
        );
    }
    for line in &options.header {
        let parsed = line.split_once(':').and_then(|(name, value)| {
            Some((
                HeaderName::from_bytes(name.trim().as_bytes()).ok()?,
                HeaderValue::from_str(value.trim()).ok()?,
            ))
        });
        let (name, value) = parsed.ok_or_else(|| Failure::Url(format!("{line:?} is no header")))?;
        headers.insert(name, value);
    }
    Ok(request)
}

fn deliver(options: &Options, answer: &Answer) -> Result<(), Error> {
    let mut bytes = Vec::new();
    if options.include || options.head {
        let head = &answer.head;
        bytes.extend_from_slice(format!("{:?} {}\r\n", head.version(), head.status()).as_bytes());
        for (name, value) in head.headers() {
            bytes.extend_from_slice(name.as_str().as_bytes());
            bytes.extend_from_slice(b": ");
            bytes.extend_from_slice(value.as_bytes());
            bytes.extend_from_slice(b"\r\n");
        }
        bytes.extend_from_slice(b"\r\n");
    }
    bytes.extend_from_slice(&answer.body);
    match &options.output {
        Some(path) if path.as_os_str() != "-" => std::fs::File::create(path)
            .and_then(|mut file| file.write_all(&bytes))
            .map_err(|source| Error::File {
                what: path.display().to_string(),
                source,
            }),
        _ => text::print(&bytes),
    }
}

/// The `-w` format: variables in `%{}`, and `\n`, `\r`, `\t`. An unknown
/// variable expands to nothing.
fn expand(format: &str, answer: Option<&Answer>, taken: Duration) -> String {
    let mut out = String::new();
    let mut rest = format;
    while let Some(at) = rest.find(['%', '\\']) {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        if let Some((name, after)) = rest.strip_prefix("%{").and_then(|r| r.split_once('}')) {
            let value = |of: &dyn Fn(&Answer) -> String| answer.map(of).unwrap_or_default();
            match name {
                "http_code" | "response_code" => {
                    let status = answer.map_or(0, |a| a.head.status().as_u16());
                    out.push_str(&format!("{status:03}"));
                }
                "remote_ip" => out.push_str(&value(&|a| a.remote.ip().to_string())),
                "remote_port" => out.push_str(&value(&|a| a.remote.port().to_string())),
                "local_ip" => out.push_str(&value(&|a| a.local.ip().to_string())),
                "local_port" => out.push_str(&value(&|a| a.local.port().to_string())),
                "size_download" => {
                    out.push_str(&answer.map_or(0, |a| a.body.len()).to_string());
                }
                "time_total" => out.push_str(&format!("{:.6}", taken.as_secs_f64())),
                _ => {}
            }
            rest = after;
            continue;
        }
        let mut characters = rest.chars();
        match (characters.next(), characters.next()) {
            (Some('\\'), Some('n')) => out.push('\n'),
            (Some('\\'), Some('r')) => out.push('\r'),
            (Some('\\'), Some('t')) => out.push('\t'),
            (Some('%'), Some('%')) => out.push('%'),
            (Some(first), _) => {
                out.push(first);
                rest = &rest[first.len_utf8()..];
                continue;
            }
            (None, _) => break,
        }
        rest = characters.as_str();
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_format_expands_without_an_answer() {
        let expand = |format| expand(format, None, Duration::from_millis(1500));
        assert_eq!(expand(r"%{http_code}\n"), "000\n");
        assert_eq!(expand("a%%b%{remote_ip}c%{none}d%"), "a%bcd%");
        assert_eq!(expand(r"\q%{time_total}\t"), "\\q1.500000\t");
    }
}
