//! Pulling from a registry by the OCI distribution protocol.

use std::collections::HashMap;
use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use http_body_util::{BodyExt, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::header::{ACCEPT, AUTHORIZATION, HOST, LOCATION, USER_AGENT, WWW_AUTHENTICATE};
use hyper::{Request, Response, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use tokio::net::TcpStream;

use super::layer::{self, digest_of, hex};
use super::manifest::{Descriptor, Document, check_digest, choose, configuration};
use super::store::Entry;
use super::{Error, Image, Reference, Store};

const MANIFESTS: &str = "application/vnd.oci.image.index.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, \
    application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.v2+json";
/// A document larger than this is none.
const DOCUMENT_LIMIT: usize = 8 * 1024 * 1024;
/// A registry that says nothing for so long is given up.
const PATIENCE: Duration = Duration::from_secs(30);
const REDIRECTS: usize = 5;

/// Who pulls, as in an imagePullSecret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credentials {
    /// Name and password as `base64(name:password)`.
    basic: String,
}

impl Credentials {
    /// The credentials a `.dockerconfigjson` has for a registry.
    pub fn find(docker_config: &[u8], registry: &str) -> Option<Self> {
        #[derive(Deserialize)]
        struct File {
            auths: HashMap<String, Login>,
        }
        #[derive(Deserialize)]
        struct Login {
            auth: Option<String>,
            username: Option<String>,
            password: Option<String>,
        }
        let file: File = serde_json::from_slice(docker_config).ok()?;
        let login = file.auths.into_iter().find_map(|(host, login)| {
            let host = host
                .trim_start_matches("https://")
                .trim_start_matches("http://");
            let host = host.split('/').next().unwrap_or_default();
            let docker = registry == "docker.io" && host == "index.docker.io";
            (host == registry || docker).then_some(login)
        })?;
        let basic = match (login.auth, login.username, login.password) {
            (Some(auth), ..) if !auth.is_empty() => auth,
            (_, Some(name), Some(password)) => {
                base64::engine::general_purpose::STANDARD.encode(format!("{name}:{password}"))
            }
            _ => return None,
        };
        Some(Self { basic })
    }
}

impl Store {
    /// Pulls an image, taking what the store already has of it.
    ///
    /// # Errors
    /// When the registry can't be reached, has no such image or no variant for
    /// this machine, wants other credentials, or sends what its digests do not
    /// name.
    pub async fn pull(
        &self,
        reference: &Reference,
        credentials: Option<&Credentials>,
    ) -> Result<Image, Error> {
        let mut registry = Registry::new(reference, credentials);
        let wanted = reference
            .digest
            .as_deref()
            .or(reference.tag.as_deref())
            .unwrap_or("latest");
        let (digest, bytes) = registry.manifest(wanted).await?;
        let mut document = Document::parse(&digest, &bytes)?;
        if let Document::Index(variants) = &document {
            let chosen = choose(&reference.to_string(), variants)?;
            let (digest, bytes) = registry
                .manifest(check_digest("the image index", &chosen.digest).map(|_| &*chosen.digest)?)
                .await?;
            document = Document::parse(&digest, &bytes)?;
        }
        let Document::Manifest { config, layers } = document else {
            return Err(Error::content(digest, "an index within an index"));
        };
        let bytes = registry.document_blob(&config).await?;
        let (processes, digests) = configuration(&config.digest, &bytes)?;
        if digests.len() != layers.len() {
            return Err(Error::content(
                digest,
                "it names another number of layers than its configuration",
            ));
        }
        for (diff, layer) in digests.iter().zip(&layers) {
            if !self.has_layer(diff) {
                self.pull_layer(&mut registry, layer, diff).await?;
            }
        }
        let entry = Entry {
            name: reference.to_string(),
            id: format!("{}/{}@{digest}", reference.registry, reference.repository),
            layers: digests,
            config: processes,
        };
        self.put(&entry)?;
        Ok(self.image(entry))
    }

    /// Fetches a layer into a file, then unpacks it on another thread.
    async fn pull_layer(
        &self,
        registry: &mut Registry<'_>,
        layer: &Descriptor,
        diff: &str,
    ) -> Result<(), Error> {
        let (mut file, path) = self.scratch()?;
        let fetched = registry.blob(layer, &mut file).await;
        if let Err(error) = fetched {
            let _ = std::fs::remove_file(&path);
            return Err(error);
        }
        let (store, diff) = (self.clone(), diff.to_owned());
        let unpacked = tokio::task::spawn_blocking(move || {
            let unpack = || {
                let file = std::fs::File::open(&path).map_err(Error::disk("opening", &path))?;
                store.layer(&diff, |dir| layer::unpack(file, &diff, dir))
            };
            let unpacked = unpack();
            let _ = std::fs::remove_file(&path);
            unpacked
        });
        unpacked
            .await
            .unwrap_or_else(|error| Err(Error::content("unpacking a layer", error)))
            .map(drop)
    }
}

/// A registry as one pull sees it.
struct Registry<'a> {
    reference: &'a Reference,
    credentials: Option<&'a Credentials>,
    /// The header that lets us in, once we know which.
    authorization: Option<String>,
    base: String,
}

impl<'a> Registry<'a> {
    fn new(reference: &'a Reference, credentials: Option<&'a Credentials>) -> Self {
        let host = match reference.registry.as_str() {
            "docker.io" => "registry-1.docker.io",
            other => other,
        };
        let scheme = if is_loopback(host) { "http" } else { "https" };
        Self {
            reference,
            credentials,
            authorization: None,
            base: format!("{scheme}://{host}/v2/{}", reference.repository),
        }
    }

    fn error(&self, what: &str, reason: impl ToString, denied: bool) -> Error {
        Error::Registry {
            action: format!("{what} from {}", self.reference.registry),
            reason: reason.to_string(),
            denied,
        }
    }

    async fn manifest(&mut self, wanted: &str) -> Result<(String, Vec<u8>), Error> {
        let what = format!("getting the manifest of {}", self.reference);
        let url = format!("{}/manifests/{wanted}", self.base);
        let answer = self.get(&what, &url).await?;
        let bytes = self.whole(&what, answer).await?;
        let digest = digest_of(&bytes);
        if wanted.starts_with("sha256:") && wanted != digest {
            return Err(Error::content(
                format!("manifest {wanted}"),
                format!("its content has the digest {digest}"),
            ));
        }
        Ok((digest, bytes))
    }

    async fn document_blob(&mut self, blob: &Descriptor) -> Result<Vec<u8>, Error> {
        check_digest("the manifest", &blob.digest)?;
        let what = format!("getting the configuration of {}", self.reference);
        let url = format!("{}/blobs/{}", self.base, blob.digest);
        let answer = self.get(&what, &url).await?;
        let bytes = self.whole(&what, answer).await?;
        let got = digest_of(&bytes);
        if got == blob.digest {
            Ok(bytes)
        } else {
            Err(wrong_digest(&blob.digest, &got))
        }
    }

    /// Fetches a blob into a file, which may not be longer than it says.
    async fn blob(&mut self, blob: &Descriptor, file: &mut std::fs::File) -> Result<(), Error> {
        check_digest("the manifest", &blob.digest)?;
        let what = format!("getting a layer of {}", self.reference);
        let url = format!("{}/blobs/{}", self.base, blob.digest);
        let mut body = self.get(&what, &url).await?.into_body();
        let mut hash = Sha256::new();
        let mut length = 0;
        loop {
            let frame = tokio::time::timeout(PATIENCE, body.frame())
                .await
                .map_err(|_| self.error(&what, "it has stopped sending", false))?;
            let Some(frame) = frame else { break };
            let frame = frame.map_err(|error| self.error(&what, error, false))?;
            if let Ok(data) = frame.into_data() {
                length += data.len() as u64;
                if blob.size > 0 && length > blob.size {
                    return Err(Error::content(
                        format!("blob {}", blob.digest),
                        format!("it is longer than its {} bytes", blob.size),
                    ));
                }
                hash.update(&data);
                file.write_all(&data)
                    .map_err(Error::disk("writing", "a layer on its way"))?;
            }
        }
        let got = hex(&hash.finalize());
        if got == blob.digest {
            Ok(())
        } else {
            Err(wrong_digest(&blob.digest, &got))
        }
    }

    async fn whole(&self, what: &str, answer: Response<Incoming>) -> Result<Vec<u8>, Error> {
        let limited = http_body_util::Limited::new(answer.into_body(), DOCUMENT_LIMIT);
        let body = tokio::time::timeout(PATIENCE, limited.collect())
            .await
            .map_err(|_| self.error(what, "it has stopped sending", false))?
            .map_err(|error| self.error(what, error, false))?;
        Ok(body.to_bytes().to_vec())
    }

    /// Gets what is at a URL; answers a challenge, follows redirects.
    async fn get(&mut self, what: &str, url: &str) -> Result<Response<Incoming>, Error> {
        let mut url = url.to_owned();
        let mut challenged = false;
        // Blobs are often kept elsewhere, where our credentials must not go.
        let mut elsewhere = false;
        for _ in 0..=REDIRECTS {
            let authorization = self.authorization.as_deref().filter(|_| !elsewhere);
            let answer = request(&url, authorization)
                .await
                .map_err(|reason| self.error(what, reason, false))?;
            let status = answer.status();
            if status.is_success() {
                return Ok(answer);
            }
            if status.is_redirection() {
                let to = answer
                    .headers()
                    .get(LOCATION)
                    .and_then(|to| to.to_str().ok())
                    .ok_or_else(|| self.error(what, "a redirect to nowhere", false))?;
                if to.starts_with('/') {
                    let origin = origin(&url);
                    url = format!("{origin}{to}");
                } else {
                    elsewhere |= origin(to) != origin(&url);
                    url = to.to_owned();
                }
                continue;
            }
            if status == StatusCode::UNAUTHORIZED && !challenged && !elsewhere {
                challenged = true;
                let challenge = answer
                    .headers()
                    .get(WWW_AUTHENTICATE)
                    .and_then(|challenge| challenge.to_str().ok())
                    .unwrap_or_default()
                    .to_owned();
                self.authorization = Some(self.answer(what, &challenge).await?);
                continue;
            }
            let denied = matches!(
                status,
                StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::NOT_FOUND
            );
            let said = self.whole(what, answer).await.unwrap_or_default();
            return Err(self.error(what, said_by(status, &said), denied));
        }
        Err(self.error(what, "too many redirects", false))
    }

    /// The Authorization header a challenge asks for: Basic, or Bearer with a
    /// token of the server it names.
    async fn answer(&self, what: &str, challenge: &str) -> Result<String, Error> {
        let basic = self.credentials.map(|c| format!("Basic {}", c.basic));
        let Some(challenge) = Challenge::parse(challenge) else {
            return basic.ok_or_else(|| {
                self.error(
                    what,
                    "it wants a name and a password: give an imagePullSecret",
                    true,
                )
            });
        };
        let url = challenge.url(&self.reference.repository);
        let answer = request(&url, basic.as_deref()).await.map_err(|reason| {
            self.error(what, format!("asking {url} for a token: {reason}"), false)
        })?;
        let status = answer.status();
        let bytes = self.whole(what, answer).await?;
        if !status.is_success() {
            let reason = format!("asking {url} for a token: {}", said_by(status, &bytes));
            return Err(self.error(what, reason, true));
        }
        #[derive(Deserialize)]
        struct Token {
            token: Option<String>,
            access_token: Option<String>,
        }
        let token: Token = serde_json::from_slice(&bytes)
            .map_err(|error| self.error(what, format!("the token of {url}: {error}"), false))?;
        let token = token
            .token
            .or(token.access_token)
            .ok_or_else(|| self.error(what, format!("{url} gave no token"), false))?;
        Ok(format!("Bearer {token}"))
    }
}

fn wrong_digest(wanted: &str, got: &str) -> Error {
    Error::content(
        format!("blob {wanted}"),
        format!("its content has the digest {got}"),
    )
}

/// The errors a registry lists, or the status alone.
fn said_by(status: StatusCode, body: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Errors {
        errors: Vec<One>,
    }
    #[derive(Deserialize)]
    struct One {
        code: Option<String>,
        message: Option<String>,
    }
    let errors: Vec<String> = serde_json::from_slice::<Errors>(body)
        .map(|errors| errors.errors)
        .unwrap_or_default()
        .into_iter()
        .map(|one| one.message.or(one.code).unwrap_or_default())
        .collect();
    if errors.is_empty() {
        status.to_string()
    } else {
        format!("{status}: {}", errors.join("; "))
    }
}

/// What a Bearer challenge names (RFC 6750, distribution's token protocol).
#[derive(Debug, PartialEq, Eq)]
struct Challenge {
    realm: String,
    service: Option<String>,
    scope: Option<String>,
}

impl Challenge {
    fn parse(header: &str) -> Option<Self> {
        let rest = header
            .strip_prefix("Bearer ")
            .or_else(|| header.strip_prefix("bearer "))?;
        let field = |name: &str| {
            let at = rest.find(&format!("{name}=\""))? + name.len() + 2;
            let value = &rest[at..];
            Some(value[..value.find('"')?].to_owned())
        };
        Some(Self {
            realm: field("realm")?,
            service: field("service"),
            scope: field("scope"),
        })
    }

    fn url(&self, repository: &str) -> String {
        let scope = self
            .scope
            .clone()
            .unwrap_or_else(|| format!("repository:{repository}:pull"));
        let joint = if self.realm.contains('?') { '&' } else { '?' };
        let mut url = format!("{}{joint}scope={}", self.realm, encoded(&scope));
        if let Some(service) = &self.service {
            url.push_str(&format!("&service={}", encoded(service)));
        }
        url
    }
}

fn encoded(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'a'..=b'z'
            | b'A'..=b'Z'
            | b'0'..=b'9'
            | b'-'
            | b'.'
            | b'_'
            | b'~'
            | b':'
            | b'/'
            | b',' => char::from(byte).to_string(),
            other => format!("%{other:02X}"),
        })
        .collect()
}

/// Scheme and host of a URL.
fn origin(url: &str) -> &str {
    let after = url.find("://").map_or(0, |at| at + 3);
    let end = url[after..].find('/').map_or(url.len(), |at| after + at);
    &url[..end]
}

/// Whether a registry is on this machine, where plain HTTP is as good.
fn is_loopback(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    name == "localhost"
        || name
            .parse::<std::net::IpAddr>()
            .is_ok_and(|ip| ip.is_loopback())
}

/// One request on a connection of its own.
async fn request(url: &str, authorization: Option<&str>) -> Result<Response<Incoming>, String> {
    let uri: Uri = url.parse().map_err(|error| format!("{url}: {error}"))?;
    let host = uri.host().ok_or_else(|| format!("{url} names no host"))?;
    let https = uri.scheme_str() == Some("https");
    if !https && !is_loopback(host) {
        return Err(format!("{url}: plain HTTP is spoken on loopback only"));
    }
    let port = uri.port_u16().unwrap_or(if https { 443 } else { 80 });
    let authority = uri.authority().map(ToString::to_string).unwrap_or_default();
    let path = uri
        .path_and_query()
        .map_or_else(|| "/".into(), ToString::to_string);
    let mut request = Request::get(path)
        .header(HOST, authority)
        .header(USER_AGENT, "podwire")
        .header(ACCEPT, MANIFESTS);
    if let Some(authorization) = authorization {
        request = request.header(AUTHORIZATION, authorization);
    }
    let request = request
        .body(Empty::<Bytes>::new())
        .map_err(|error| error.to_string())?;
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let talk = async {
        let stream = TcpStream::connect((bare, port))
            .await
            .map_err(|error| format!("connecting to {host}:{port}: {error}"))?;
        let mut sender = if https {
            let name = ServerName::try_from(bare.to_owned()).map_err(|error| error.to_string())?;
            let connector = tokio_rustls::TlsConnector::from(Arc::new(tls()?));
            let stream = connector
                .connect(name, stream)
                .await
                .map_err(|error| format!("TLS with {host}: {error}"))?;
            handshake(stream).await?
        } else {
            handshake(stream).await?
        };
        sender
            .send_request(request)
            .await
            .map_err(|error| format!("{url}: {error}"))
    };
    tokio::time::timeout(PATIENCE, talk)
        .await
        .map_err(|_| format!("{url}: no answer within {} s", PATIENCE.as_secs()))?
}

async fn handshake<S>(
    stream: S,
) -> Result<hyper::client::conn::http1::SendRequest<Empty<Bytes>>, String>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| error.to_string())?;
    // It ends with the body that is read from it.
    tokio::spawn(connection);
    Ok(sender)
}

fn tls() -> Result<rustls::ClientConfig, String> {
    let mut roots = rustls::RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        return Err("this machine has no certificates to trust: install ca-certificates".into());
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())
        .map(|builder| builder.with_root_certificates(roots).with_no_client_auth())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[test]
    fn bearer_challenges_name_where_to_ask() {
        let header = r#"Bearer realm="https://auth.example/token",service="reg.example",scope="repository:a/b:pull""#;
        let challenge = Challenge::parse(header).unwrap();
        assert_eq!(
            challenge.url("x"),
            "https://auth.example/token?scope=repository:a/b:pull&service=reg.example"
        );
        assert_eq!(Challenge::parse("Basic realm=\"x\""), None);
        let bare = Challenge::parse(r#"Bearer realm="https://a/t?x=1""#).unwrap();
        assert_eq!(bare.url("r"), "https://a/t?x=1&scope=repository:r:pull");
    }

    #[rstest]
    #[case("localhost:5000", true)]
    #[case("127.0.0.1:5000", true)]
    #[case("[::1]:5000", true)]
    #[case("localhost.example", false)]
    #[case("192.0.2.1:5000", false)]
    fn plain_http_is_for_loopback(#[case] host: &str, #[case] loopback: bool) {
        assert_eq!(is_loopback(host), loopback);
    }

    #[test]
    fn credentials_are_found_by_host() {
        let config = br#"{"auths":{"https://reg.example/v1/":{"auth":"YTpi"},"other":{"username":"a","password":"b"}}}"#;
        let basic = |host: &str| Credentials::find(config, host).map(|c| c.basic);
        assert_eq!(basic("reg.example").as_deref(), Some("YTpi"));
        assert_eq!(basic("other").as_deref(), Some("YTpi"));
        assert_eq!(basic("third"), None);
    }

    #[test]
    fn origins_end_at_the_path() {
        assert_eq!(origin("https://a:1/b/c"), "https://a:1");
        assert_eq!(origin("http://a"), "http://a");
    }
}
