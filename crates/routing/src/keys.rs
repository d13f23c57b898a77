//! This node's WireGuard key: made once, kept in a file only root can read,
//! replaced on request.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use linux::namespace::NetworkNamespace;
use linux::netlink;
use linux::tunnel::{self, Tunnel};
use linux::wireguard::{self, PrivateKey, PublicKey, WireGuard};

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read or written.
    #[error("cannot {action} the WireGuard key {path}: {source}")]
    File {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file holds something else.
    #[error("{path} holds no WireGuard key (32 bytes in base64); remove it for a new one")]
    Malformed {
        /// The file.
        path: PathBuf,
    },
    /// Others than its owner can read the file.
    #[error(
        "the WireGuard key {path} has mode {mode:o}, so others may know it; remove it for a new one"
    )]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The kernel gives no random numbers.
    #[error("cannot make a WireGuard key: {0}")]
    Random(io::Error),
    /// The kernel did not tell the public key.
    #[error("cannot find out the public key: {0}")]
    Kernel(#[from] netlink::Error),
    /// No network namespace to ask the kernel in.
    #[error("cannot find out the public key: {0}")]
    Namespace(#[from] linux::namespace::Error),
}

/// The key in a file, which is made with a new one where there is none.
///
/// # Errors
/// When the file cannot be read or made, holds something else, or can be read
/// by others.
pub fn load_or_make(path: &Path) -> Result<PrivateKey, Error> {
    let failed = |source| Error::File {
        action: "read",
        path: path.to_owned(),
        source,
    };
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return rotate(path),
        Err(source) => return Err(failed(source)),
    };
    let mode = fs::metadata(path).map_err(failed)?.permissions().mode() & 0o777;
    let path = path.to_owned();
    if mode & 0o077 != 0 {
        return Err(Error::Exposed { path, mode });
    }
    let bytes = STANDARD.decode(text.trim()).ok();
    match bytes.and_then(|bytes| bytes.try_into().ok()) {
        Some(bytes) => Ok(PrivateKey::from_bytes(bytes)),
        None => Err(Error::Malformed { path }),
    }
}

/// A new key in the file's place, at once and whole. Peers have to be told.
///
/// # Errors
/// When the file cannot be written.
pub fn rotate(path: &Path) -> Result<PrivateKey, Error> {
    let failed = |source| Error::File {
        action: "write",
        path: path.to_owned(),
        source,
    };
    let key = PrivateKey::generate().map_err(failed)?;
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(failed)?;
    }
    let new = path.with_extension("new");
    // One of an interrupted attempt.
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&new)
        .map_err(failed)?;
    writeln!(file, "{}", STANDARD.encode(key.as_bytes())).map_err(failed)?;
    file.sync_all().map_err(failed)?;
    fs::rename(&new, path).map_err(failed)?;
    Ok(key)
}

/// The public key that belongs to a private one, by the kernel's own
/// arithmetic: of a device in a network namespace made for the question.
///
/// # Errors
/// When the kernel has no WireGuard.
pub fn public_key(key: &PrivateKey) -> Result<PublicKey, Error> {
    const NAME: &str = "question";
    const MTU: u32 = 1420;
    let namespace = NetworkNamespace::create()?;
    let mut socket = namespace.route_socket()?;
    socket.execute(&tunnel::add(NAME, &Tunnel::Wireguard, MTU, None))?;
    let mut wireguard = namespace.run(WireGuard::open)??;
    let settings = wireguard::Settings {
        private_key: Some(key.clone()),
        ..wireguard::Settings::default()
    };
    wireguard.configure(NAME, &settings)?;
    let device = wireguard.device(NAME)?;
    device.and_then(|device| device.public_key).ok_or_else(|| {
        Error::Kernel(netlink::Error::Malformed {
            purpose: "read a WireGuard device".to_owned(),
            reason: "it has no public key".to_owned(),
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_made_once_kept_for_its_owner_alone_and_replaced_on_request() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state/wireguard.key");
        let first = load_or_make(&path).unwrap();
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        assert_eq!(load_or_make(&path).unwrap(), first);
        let second = rotate(&path).unwrap();
        assert_ne!(second, first);
        assert_eq!(load_or_make(&path).unwrap(), second);
        assert_eq!(
            fs::read_dir(folder.path().join("state")).unwrap().count(),
            1
        );
    }

    #[test]
    fn a_file_that_is_no_key_or_no_secret_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        let key = load_or_make(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let error = load_or_make(&path).unwrap_err();
        assert!(
            matches!(error, Error::Exposed { mode: 0o644, .. }),
            "{error}"
        );
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(&path, "not a key").unwrap();
        let error = load_or_make(&path).unwrap_err();
        assert!(matches!(error, Error::Malformed { .. }), "{error}");
        assert!(!format!("{key:?}").contains(&STANDARD.encode(key.as_bytes())));
    }
}
