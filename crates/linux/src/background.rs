//! Work that goes on in the background when its process has ended: in a copy of
//! the process (fork(2)), which starts at once, since nothing is loaded anew.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::panic::AssertUnwindSafe;

/// Does `work` in a copy of this process and goes on at once. The copy has the
/// standard streams on `/dev/null`, a session of its own, and of all other files
/// only those in `keep`: `work` may use no others. It ends with `work`.
///
/// # Errors
///
/// When the process has more than one thread: the copy has only the calling one,
/// and locks that others held would stay held in it. When the kernel makes no
/// process. `work` is not done then.
pub fn run(keep: &[BorrowedFd<'_>], work: impl FnOnce()) -> io::Result<()> {
    // Two, and one for each thread.
    let links = rustix::fs::stat("/proc/self/task")?.st_nlink;
    if links != 3 {
        return Err(io::Error::other("the process has several threads"));
    }
    let null = File::options().read(true).write(true).open("/dev/null")?;
    #[allow(unsafe_code)]
    // SAFETY: this is the process's only thread, so that no lock of any library
    // is held by one that the copy lacks.
    let child = unsafe { libc::fork() };
    match child {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            let _ = std::panic::catch_unwind(AssertUnwindSafe(|| {
                detach(keep, &null);
                work();
            }));
            #[allow(unsafe_code)]
            // SAFETY: ends the process here and now: what the original has
            // registered for its own end, or not written out yet, is not the
            // copy's to do.
            unsafe {
                libc::_exit(0)
            }
        }
        _ => Ok(()),
    }
}

/// Parts the copy from what the original has. What fails leaves the copy with more
/// than it should have, which hurts nobody.
fn detach(keep: &[BorrowedFd<'_>], null: &File) {
    for stream in 0..=2 {
        #[allow(unsafe_code)]
        // SAFETY: standard streams belong to nobody; what refers to one by its
        // number writes to /dev/null from here on.
        unsafe {
            libc::dup2(null.as_raw_fd(), stream);
        }
    }
    let _ = rustix::process::setsid();
    let mut kept: Vec<RawFd> = keep.iter().map(AsRawFd::as_raw_fd).collect();
    kept.sort_unstable();
    let mut from = 3;
    for number in kept {
        close(from, number - 1);
        from = from.max(number + 1);
    }
    close(from, RawFd::MAX);
}

/// Closes all files with numbers from `first` to `last`.
fn close(first: RawFd, last: RawFd) {
    if first > last {
        return;
    }
    let (Ok(first), Ok(last)) = (u32::try_from(first), u32::try_from(last)) else {
        return;
    };
    #[allow(unsafe_code)]
    // SAFETY: the copy never returns to the frames that own these files. (Since
    // Linux 5.9; an older kernel refuses, and they stay open.)
    unsafe {
        libc::syscall(libc::SYS_close_range, first, last, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_of_several_threads_is_not_copied() {
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        std::thread::scope(|scope| {
            scope.spawn(move || stopped.recv());
            let refused = run(&[], || unreachable!("there is no copy")).unwrap_err();
            assert!(refused.to_string().contains("several threads"));
            drop(stop);
        });
    }
}
