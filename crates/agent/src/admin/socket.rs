//! The socket itself: for root only from its first moment, and replaced only
//! when nobody answers on it.

use std::fs;
use std::io;
use std::os::unix::fs::FileTypeExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, fchmod};
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind as bind_to, listen,
};

/// Connections that wait to be accepted.
const BACKLOG: i32 = 16;

/// A socket's file; dropped, it is removed.
#[derive(Debug)]
pub(crate) struct Bound(PathBuf);

impl Drop for Bound {
    fn drop(&mut self) {
        // Gone already is as well.
        let _ = fs::remove_file(&self.0);
    }
}

/// Listens at a path, without blocking. What a killed agent left is replaced.
///
/// # Errors
/// When somebody answers there, when there is something else than a socket, or
/// when the path cannot be made; in words.
pub(crate) fn bind(path: &Path) -> Result<(UnixListener, Bound), String> {
    let failed = |error: io::Error| format!("cannot listen at {}: {error}", path.display());
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory).map_err(failed)?;
    }
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
        Ok(found) if !found.file_type().is_socket() => {
            return Err(format!(
                "cannot listen at {}: there is something that is no socket; remove it",
                path.display()
            ));
        }
        Ok(_) if UnixStream::connect(path).is_ok() => {
            return Err(format!(
                "cannot listen at {}: another agent answers there",
                path.display()
            ));
        }
        Ok(_) => fs::remove_file(path).map_err(failed)?,
    }
    let listener = open(path).map_err(|errno| failed(errno.into()))?;
    Ok((listener, Bound(path.to_owned())))
}

fn open(path: &Path) -> rustix::io::Result<UnixListener> {
    let socket = rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )?;
    // The file gets the socket's own mode (net/unix/af_unix.c, unix_bind_bsd):
    // there is no moment in which others may open it.
    fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    bind_to(&socket, &SocketAddrUnix::new(path)?)?;
    listen(&socket, BACKLOG)?;
    Ok(UnixListener::from(socket))
}
