//! Mounts: private trees, bind mounts, overlays, and the kernel's own file
//! systems. Every error names what was to be mounted and where.
//!
//! Nothing here makes a mount namespace: start the process with
//! `process::Namespace::Mount`, then call [`make_private`] before anything else
//! so that no mount propagates back.

use std::ffi::{CStr, CString};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};

/// A mount that could not be made or changed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} at {target}: {source}", target = target.display())]
pub struct Error {
    /// What was being done, with its source: "mount an overlay of /a".
    pub action: String,
    /// Where.
    pub target: PathBuf,
    /// What the kernel said.
    pub source: io::Error,
}

fn failure(action: impl Into<String>, target: &Path) -> impl FnOnce(rustix::io::Errno) -> Error {
    let (action, target) = (action.into(), target.to_owned());
    move |errno| Error {
        action,
        target,
        source: errno.into(),
    }
}

/// Makes all mounts at and below `target` private: from here on no mount made
/// in this namespace is seen in another and none made there is seen here.
///
/// # Errors
/// When `target` is not a mount point or the caller may not.
pub fn make_private(target: &Path) -> Result<(), Error> {
    rustix::mount::mount_change(
        target,
        MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
    )
    .map_err(failure("make the mounts private", target))
}

/// Shows `source` (a file or a directory, without mounts below it) at `target`.
///
/// # Errors
/// When either is missing, or the caller may not.
pub fn bind(source: &Path, target: &Path) -> Result<(), Error> {
    rustix::mount::mount_bind(source, target)
        .map_err(failure(format!("bind {}", source.display()), target))
}

/// Shows `source` with all mounts below it at `target`.
///
/// # Errors
/// When either is missing, or the caller may not.
pub fn bind_recursive(source: &Path, target: &Path) -> Result<(), Error> {
    rustix::mount::mount_bind_recursive(source, target).map_err(failure(
        format!("bind {} and what is mounted below", source.display()),
        target,
    ))
}

/// Shows `source` (without mounts below it) at `target`, read-only.
///
/// # Errors
/// When either is missing, or the caller may not.
pub fn bind_read_only(source: &Path, target: &Path) -> Result<(), Error> {
    bind(source, target)?;
    remount_read_only(target)
}

/// Makes the bind mount at `target` read-only.
///
/// # Errors
/// When `target` is not a mount point or the caller may not.
pub fn remount_read_only(target: &Path) -> Result<(), Error> {
    rustix::mount::mount_remount(target, MountFlags::BIND | MountFlags::RDONLY, c"")
        .map_err(failure("make the mount read-only", target))
}

/// The writable layer of an overlay.
#[derive(Clone, Copy, Debug)]
pub struct Upper<'a> {
    /// Holds what was changed.
    pub upper: &'a Path,
    /// An empty directory on the same file system, for the kernel's use.
    pub work: &'a Path,
}

/// Mounts an overlay of `lower` directories, the first one on top; without
/// `upper` it is read-only.
///
/// A lower layer is one file system: what is mounted below it does not show.
///
/// # Errors
/// When a directory is missing, a path holds a zero byte, the kernel has no
/// overlayfs, or the layers don't fit on the one page of options mount(2) takes
/// (some 4000 bytes: use short paths).
pub fn overlay(lower: &[&Path], upper: Option<Upper<'_>>, target: &Path) -> Result<(), Error> {
    let action = || match lower {
        [only] => format!("mount an overlay of {}", only.display()),
        _ => format!("mount an overlay of {} layers", lower.len()),
    };
    let options = overlay_options(lower, upper).map_err(|source| Error {
        action: action(),
        target: target.to_owned(),
        source,
    })?;
    rustix::mount::mount(
        c"overlay",
        target,
        c"overlay",
        MountFlags::empty(),
        Some(options.as_c_str()),
    )
    .map_err(failure(action(), target))
}

/// The option string of an overlay; `:`, `,` and `\` in paths are escaped as
/// the kernel's option parser wants it.
fn overlay_options(lower: &[&Path], upper: Option<Upper<'_>>) -> io::Result<CString> {
    fn escaped(path: &Path, options: &mut Vec<u8>) {
        for &byte in path.as_os_str().as_bytes() {
            if matches!(byte, b':' | b',' | b'\\') {
                options.push(b'\\');
            }
            options.push(byte);
        }
    }
    let mut options = b"lowerdir=".to_vec();
    for (index, path) in lower.iter().enumerate() {
        if index > 0 {
            options.push(b':');
        }
        escaped(path, &mut options);
    }
    if let Some(layer) = upper {
        options.extend_from_slice(b",upperdir=");
        escaped(layer.upper, &mut options);
        options.extend_from_slice(b",workdir=");
        escaped(layer.work, &mut options);
    }
    // One page, of which the kernel keeps the last byte.
    if options.len() >= 4095 {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{} bytes of options, the kernel takes 4094", options.len()),
        ));
    }
    CString::new(options)
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "a path with a zero byte"))
}

/// Mounts a tmpfs with the given options (tmpfs(5)), for instance
/// `mode=0755,size=64m`; empty for the kernel's defaults.
///
/// # Errors
/// When the directory is missing or the caller may not.
pub fn tmpfs(target: &Path, options: &str) -> Result<(), Error> {
    let options = CString::new(options).map_err(|_| Error {
        action: "mount a tmpfs".into(),
        target: target.to_owned(),
        source: io::Error::new(io::ErrorKind::InvalidInput, "options with a zero byte"),
    })?;
    kernel(
        c"tmpfs",
        target,
        MountFlags::NOSUID | MountFlags::NODEV,
        &options,
    )
}

/// Mounts the process list of the caller's process-number namespace.
///
/// # Errors
/// When the directory is missing or the caller may not.
pub fn proc(target: &Path) -> Result<(), Error> {
    kernel(c"proc", target, quiet(), c"")
}

/// Mounts sysfs; `/sys/class/net` in it shows the caller's network namespace.
///
/// # Errors
/// When the directory is missing or the caller may not.
pub fn sysfs(target: &Path) -> Result<(), Error> {
    kernel(c"sysfs", target, quiet(), c"")
}

/// Mounts the unified cgroup tree, from the caller's cgroup namespace's root.
///
/// # Errors
/// When the directory is missing or the caller may not.
pub fn cgroup2(target: &Path) -> Result<(), Error> {
    kernel(c"cgroup2", target, quiet(), c"")
}

/// Mounts a devpts instance of its own.
///
/// # Errors
/// When the directory is missing or the caller may not.
pub fn devpts(target: &Path) -> Result<(), Error> {
    kernel(
        c"devpts",
        target,
        MountFlags::NOSUID | MountFlags::NOEXEC,
        c"newinstance,ptmxmode=0666,mode=0620",
    )
}

/// Mounts the POSIX message queues of the caller's IPC namespace.
///
/// # Errors
/// When the directory is missing or the caller may not.
pub fn mqueue(target: &Path) -> Result<(), Error> {
    kernel(c"mqueue", target, quiet(), c"")
}

fn quiet() -> MountFlags {
    MountFlags::NOSUID | MountFlags::NOEXEC | MountFlags::NODEV
}

fn kernel(kind: &CStr, target: &Path, flags: MountFlags, options: &CStr) -> Result<(), Error> {
    rustix::mount::mount(kind, target, kind, flags, Some(options))
        .map_err(failure(format!("mount {}", kind.to_string_lossy()), target))
}

/// Moves a mount.
///
/// # Errors
/// When `source` is no mount point or lies on a shared mount.
pub fn move_mount(source: &Path, target: &Path) -> Result<(), Error> {
    rustix::mount::mount_move(source, target).map_err(failure(
        format!("move the mount {}", source.display()),
        target,
    ))
}

/// Takes a mount away. With `detach` it leaves the tree at once and the file
/// system is let go when the last user has left it.
///
/// # Errors
/// When there is no mount, or it is in use and `detach` is not asked for.
pub fn unmount(target: &Path, detach: bool) -> Result<(), Error> {
    let flags = if detach {
        UnmountFlags::DETACH
    } else {
        UnmountFlags::empty()
    };
    rustix::mount::unmount(target, flags | UnmountFlags::NOFOLLOW)
        .map_err(failure("unmount what is mounted", target))
}

/// Makes `root`, a mount point, the root of the caller's mount namespace and
/// lets the old root go with all that is mounted below it. The working
/// directory is the new root afterwards.
///
/// # Errors
/// When `root` is not a mount point, or mounts around it are shared.
pub fn pivot_root(root: &Path) -> Result<(), Error> {
    let action = "make the root directory what is mounted";
    rustix::process::chdir(root).map_err(failure(action, root))?;
    // Both names the same directory: the old root is then stacked on top of the
    // new one and can be taken off without a directory for it (pivot_root(2)).
    rustix::process::pivot_root(c".", c".").map_err(failure(action, root))?;
    rustix::mount::unmount(c".", UnmountFlags::DETACH)
        .map_err(failure("let the old root go", root))?;
    rustix::process::chdir(c"/").map_err(failure(action, root))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process;

    /// Runs in a mount namespace of its own on a thread of its own: nothing
    /// reaches the machine.
    fn isolated(work: impl FnOnce(&Path) + Send) {
        let directory = tempfile::tempdir().unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                process::unshare_mounts().unwrap();
                make_private(Path::new("/")).unwrap();
                work(directory.path());
            });
        });
        // The directory can only be removed when no mount leaked out here.
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(&*directory.path().to_string_lossy()));
        directory.close().unwrap();
    }

    fn mounts() -> String {
        std::fs::read_to_string("/proc/thread-self/mountinfo").unwrap()
    }

    #[test]
    fn an_overlay_keeps_its_lower_layers_unchanged() {
        isolated(|directory| {
            let at = |name: &str| directory.join(name);
            tmpfs(directory, "mode=0700").unwrap();
            for name in ["a", "b,:\\", "upper", "work", "root"] {
                std::fs::create_dir(at(name)).unwrap();
            }
            std::fs::write(at("a").join("file"), "a").unwrap();
            std::fs::write(at("b,:\\").join("file"), "b").unwrap();
            std::fs::write(at("b,:\\").join("other"), "b").unwrap();
            let upper = Upper {
                upper: &at("upper"),
                work: &at("work"),
            };
            overlay(&[&at("a"), &at("b,:\\")], Some(upper), &at("root")).unwrap();
            let read = |name: &str| std::fs::read_to_string(at("root").join(name)).unwrap();
            assert_eq!(read("file"), "a");
            assert_eq!(read("other"), "b");
            std::fs::write(at("root").join("file"), "changed").unwrap();
            assert_eq!(std::fs::read_to_string(at("a").join("file")).unwrap(), "a");
            assert_eq!(
                std::fs::read_to_string(at("upper").join("file")).unwrap(),
                "changed"
            );
        });
    }

    #[test]
    fn a_read_only_bind_refuses_writes() {
        isolated(|directory| {
            let at = |name: &str| directory.join(name);
            tmpfs(directory, "").unwrap();
            std::fs::create_dir(at("from")).unwrap();
            std::fs::create_dir(at("to")).unwrap();
            bind_read_only(&at("from"), &at("to")).unwrap();
            let error = std::fs::write(at("to").join("file"), "x").unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ReadOnlyFilesystem);
            std::fs::write(at("from").join("file"), "x").unwrap();
        });
    }

    #[test]
    fn a_moved_mount_is_gone_from_its_old_place() {
        isolated(|directory| {
            let at = |name: &str| directory.join(name);
            tmpfs(directory, "").unwrap();
            make_private(directory).unwrap();
            std::fs::create_dir(at("from")).unwrap();
            std::fs::create_dir(at("to")).unwrap();
            tmpfs(&at("from"), "").unwrap();
            std::fs::write(at("from").join("file"), "x").unwrap();
            move_mount(&at("from"), &at("to")).unwrap();
            assert!(at("to").join("file").exists());
            assert!(!at("from").join("file").exists());
            unmount(&at("to"), false).unwrap();
            assert!(!at("to").join("file").exists());
        });
    }

    #[test]
    fn an_error_names_what_and_where() {
        isolated(|directory| {
            let error = bind(Path::new("/no/source"), directory).unwrap_err();
            assert_eq!(
                error.to_string(),
                format!(
                    "cannot bind /no/source at {}: No such file or directory (os error 2)",
                    directory.display()
                )
            );
        });
    }

    #[test]
    fn kernel_file_systems_mount() {
        isolated(|directory| {
            for (name, mount) in [
                ("sysfs", sysfs as fn(&Path) -> Result<(), Error>),
                ("proc", proc),
                ("mqueue", mqueue),
                ("devpts", devpts),
                ("cgroup2", cgroup2),
            ] {
                mount(directory).unwrap();
                let wanted = format!("{} ", directory.display());
                assert!(
                    mounts()
                        .lines()
                        .any(|line| line.contains(&wanted) && line.contains(&format!("- {name} "))),
                    "{name} is not mounted"
                );
                unmount(directory, false).unwrap();
            }
        });
    }
}
