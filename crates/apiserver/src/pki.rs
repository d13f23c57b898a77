//! The server's identity and the clients' token, kept in files.

use std::fs;
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// Errors with the files of the server's identity.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// A file cannot be read or written.
    #[error("cannot {doing} {path}: {source}")]
    File {
        /// What was being done.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A certificate cannot be made.
    #[error("cannot make a certificate: {0}")]
    Certificate(#[from] rcgen::Error),
    /// The stored key or certificate does not work.
    #[error(
        "cannot use the certificate in {path}: {reason}; remove the directory to make a new one"
    )]
    Unusable {
        /// The directory.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

/// CA, server certificate and token.
pub(crate) struct Pki {
    ca: String,
    token: String,
    tls: Arc<ServerConfig>,
}

impl Pki {
    /// Reads the files in a directory, and makes what is missing. The
    /// server's certificate is made anew when it lacks one of the addresses.
    ///
    /// # Errors
    /// When files cannot be read, written or used.
    pub(crate) fn open(directory: &Path, addresses: &[IpAddr]) -> Result<Self, PkiError> {
        fs::create_dir_all(directory).map_err(|source| PkiError::File {
            doing: "make the directory",
            path: directory.to_owned(),
            source,
        })?;
        let file = |name: &str| directory.join(name);
        let ca_key = match read(&file("ca.key"))? {
            Some(pem) => KeyPair::from_pem(&pem)?,
            None => {
                let key = KeyPair::generate()?;
                write_private(&file("ca.key"), key.serialize_pem().as_bytes())?;
                key
            }
        };
        let ca = match read(&file("ca.crt"))? {
            Some(pem) => pem,
            None => {
                let pem = ca_params()?.self_signed(&ca_key)?.pem();
                write_private(&file("ca.crt"), pem.as_bytes())?;
                pem
            }
        };
        let mut names: Vec<String> = [
            "localhost",
            "kubernetes",
            "kubernetes.default",
            "kubernetes.default.svc",
            "kubernetes.default.svc.cluster.local",
            "127.0.0.1",
            "::1",
        ]
        .map(str::to_owned)
        .to_vec();
        names.extend(addresses.iter().map(ToString::to_string));
        let wanted = names.join("\n");
        let (certificate, key) = match (
            read(&file("server.crt"))?,
            read(&file("server.key"))?,
            read(&file("server.names"))?,
        ) {
            (Some(certificate), Some(key), Some(names)) if names == wanted => (certificate, key),
            _ => {
                let key = KeyPair::generate()?;
                let mut params = CertificateParams::new(names)?;
                params
                    .distinguished_name
                    .push(DnType::CommonName, "kube-apiserver");
                params.key_usages = vec![
                    KeyUsagePurpose::DigitalSignature,
                    KeyUsagePurpose::KeyEncipherment,
                ];
                params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
                params.use_authority_key_identifier_extension = true;
                let issuer = Issuer::new(ca_params()?, &ca_key);
                let pem = params.signed_by(&key, &issuer)?.pem();
                let key = key.serialize_pem();
                write_private(&file("server.key"), key.as_bytes())?;
                write_private(&file("server.crt"), pem.as_bytes())?;
                // Last: without it, the next start makes all anew.
                write_private(&file("server.names"), wanted.as_bytes())?;
                (pem, key)
            }
        };
        let token = match read(&file("token"))? {
            Some(token) if !token.trim().is_empty() => token.trim().to_owned(),
            _ => {
                let bytes: [u8; 32] = crate::object::random();
                let token: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
                write_private(&file("token"), token.as_bytes())?;
                token
            }
        };
        let unusable = |reason: String| PkiError::Unusable {
            path: directory.to_owned(),
            reason,
        };
        let chain = CertificateDer::pem_slice_iter(certificate.as_bytes())
            .collect::<Result<Vec<_>, _>>()
            .map_err(|e| unusable(e.to_string()))?;
        let key =
            PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(|e| unusable(e.to_string()))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut tls = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|e| unusable(e.to_string()))?
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .map_err(|e| unusable(e.to_string()))?;
        tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Self {
            ca,
            token,
            tls: Arc::new(tls),
        })
    }

    /// The CA's certificate in PEM.
    pub(crate) fn ca(&self) -> &str {
        &self.ca
    }

    /// The token that lets clients in.
    pub(crate) fn token(&self) -> &str {
        &self.token
    }

    pub(crate) fn tls(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.tls)
    }

    /// Whether a token is the right one; takes the same time however much of
    /// it is right.
    pub(crate) fn is_token(&self, given: &[u8]) -> bool {
        let own = self.token.as_bytes();
        if own.len() != given.len() {
            return false;
        }
        let difference = own
            .iter()
            .zip(given)
            .fold(0, |all, (a, b)| std::hint::black_box(all | (a ^ b)));
        difference == 0
    }

    /// A kubeconfig for the server at a URL, as YAML.
    pub(crate) fn kubeconfig(&self, server: &str) -> String {
        use base64::Engine;
        let ca = base64::engine::general_purpose::STANDARD.encode(&self.ca);
        format!(
            "apiVersion: v1\n\
             kind: Config\n\
             clusters:\n\
             - name: podwire\n\
             \x20 cluster:\n\
             \x20   server: {server}\n\
             \x20   certificate-authority-data: {ca}\n\
             users:\n\
             - name: podwire\n\
             \x20 user:\n\
             \x20   token: {}\n\
             contexts:\n\
             - name: podwire\n\
             \x20 context:\n\
             \x20   cluster: podwire\n\
             \x20   user: podwire\n\
             current-context: podwire\n",
            self.token
        )
    }

    /// Writes a kubeconfig that only the owner can read.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub(crate) fn write_kubeconfig(&self, path: &Path, server: &str) -> Result<(), PkiError> {
        write_private(path, self.kubeconfig(server).as_bytes())
    }
}

/// The CA as an issuer; its name has to be the same at every start.
fn ca_params() -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::new(Vec::new())?;
    params
        .distinguished_name
        .push(DnType::CommonName, "podwire-ca");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

fn read(path: &Path) -> Result<Option<String>, PkiError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(PkiError::File {
            doing: "read",
            path: path.to_owned(),
            source,
        }),
    }
}

/// Writes a file that only its owner can read, whole or not at all.
fn write_private(path: &Path, content: &[u8]) -> Result<(), PkiError> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    let write = || {
        // Left behind by a death in the middle of this.
        match fs::remove_file(&temporary) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&temporary)?
            .write_all(content)?;
        fs::rename(&temporary, path)
    };
    write().map_err(|source| PkiError::File {
        doing: "write",
        path: path.to_owned(),
        source,
    })
}
