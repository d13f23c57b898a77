//! Processes: started in namespaces of their own or of others, held by pidfds.
//!
//! [`Launch`] starts a program; it is `std::process::Command` with the steps a
//! container runtime needs between fork and exec. A process is named by a
//! pidfd ([`Process`]) rather than by its number, so that a reused number can
//! never be signalled by mistake.

use std::collections::BTreeSet;
use std::ffi::{CString, OsStr, OsString};
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal};
use rustix::thread::{LinkNameSpaceType, ThreadNameSpaceType, UnshareFlags};

/// Why a process could not be started, found or signalled.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The program was not started: a step before or at its exec failed.
    #[error("cannot start {program}: {step}: {source}")]
    Start {
        /// The program as it was given.
        program: String,
        /// The step that failed.
        step: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// A process could not be opened, signalled or waited for.
    #[error("cannot {action} process {pid}: {source}")]
    Process {
        /// What was tried.
        action: &'static str,
        /// The process's number.
        pid: i32,
        /// What the kernel said.
        source: io::Error,
    },
    /// A namespace could not be opened or entered.
    #[error("cannot enter {what}: {source}")]
    Namespace {
        /// Which namespace.
        what: String,
        /// What the kernel said.
        source: io::Error,
    },
}

/// The kinds of namespaces (namespaces(7)) a process can be given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Namespace {
    /// Links, addresses, routes, sockets, netfilter.
    Network,
    /// Mounts.
    Mount,
    /// Host name.
    Uts,
    /// System V IPC and POSIX message queues.
    Ipc,
    /// Process numbers. The started program is the first process of a new
    /// one: when it ends, the kernel kills all others in it.
    Pid,
    /// The root of the cgroup tree.
    Cgroup,
}

impl Namespace {
    /// The name of its link in `/proc/PID/ns`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Network => "net",
            Self::Mount => "mnt",
            Self::Uts => "uts",
            Self::Ipc => "ipc",
            Self::Pid => "pid",
            Self::Cgroup => "cgroup",
        }
    }

    /// The namespace file of a process; holding it keeps the namespace alive.
    ///
    /// # Errors
    /// When the process is gone, or may not be inspected.
    pub fn of(self, pid: Pid) -> Result<OwnedFd, Error> {
        open_namespace(Path::new(&format!(
            "/proc/{}/ns/{}",
            pid.as_raw_nonzero(),
            self.name()
        )))
    }

    fn link(self) -> LinkNameSpaceType {
        match self {
            Self::Network => LinkNameSpaceType::Network,
            Self::Mount => LinkNameSpaceType::Mount,
            Self::Uts => LinkNameSpaceType::HostNameAndNISDomainName,
            Self::Ipc => LinkNameSpaceType::InterProcessCommunication,
            Self::Pid => LinkNameSpaceType::ProcessID,
            Self::Cgroup => LinkNameSpaceType::ControlGroup,
        }
    }

    fn unshare(self) -> UnshareFlags {
        match self {
            Self::Network => UnshareFlags::NEWNET,
            Self::Mount => UnshareFlags::NEWNS,
            Self::Uts => UnshareFlags::NEWUTS,
            Self::Ipc => UnshareFlags::NEWIPC,
            Self::Pid => UnshareFlags::NEWPID,
            Self::Cgroup => UnshareFlags::NEWCGROUP,
        }
    }

    fn thread(self) -> ThreadNameSpaceType {
        ThreadNameSpaceType::from_bits_retain(self.unshare().bits())
    }
}

/// A process number that was read from somewhere. Text may hold anything;
/// `Pid::from_raw` asserts that a number is not negative.
pub fn number(raw: i32) -> Option<Pid> {
    if raw > 0 { Pid::from_raw(raw) } else { None }
}

/// Opens a namespace file: a link under `/proc/PID/ns` or a bind mount of one.
///
/// # Errors
/// When the file can't be opened.
pub fn open_namespace(path: &Path) -> Result<OwnedFd, Error> {
    std::fs::File::open(path)
        .map(OwnedFd::from)
        .map_err(|source| Error::Namespace {
            what: path.display().to_string(),
            source,
        })
}

/// Moves the calling thread into a new mount namespace. The mounts in it are
/// copies that still propagate: follow with `mount::make_private`.
///
/// # Errors
/// When the kernel refuses, for want of CAP_SYS_ADMIN for instance.
pub fn unshare_mounts() -> Result<(), Error> {
    unshare(UnshareFlags::NEWNS).map_err(|errno| Error::Namespace {
        what: "a new mount namespace".into(),
        source: errno.into(),
    })
}

/// Makes the calling thread's present cgroup the root of a new cgroup
/// namespace of its own.
///
/// # Errors
/// When the kernel refuses, for want of CAP_SYS_ADMIN for instance.
pub fn unshare_cgroups() -> Result<(), Error> {
    unshare(UnshareFlags::NEWCGROUP).map_err(|errno| Error::Namespace {
        what: "a new cgroup namespace".into(),
        source: errno.into(),
    })
}

/// Takes over a file handed on by [`Launch::inherit`], by its number. It is
/// closed at the next exec again. Each number can be taken once.
///
/// # Errors
/// When the number names no open file, is that of a standard stream, or was
/// taken already.
pub fn take_inherited(number: RawFd) -> io::Result<OwnedFd> {
    static TAKEN: Mutex<BTreeSet<RawFd>> = Mutex::new(BTreeSet::new());
    let wrong = |why: &str| {
        let text = format!("file number {number}: {why}");
        Err(io::Error::new(io::ErrorKind::InvalidInput, text))
    };
    if number <= 2 {
        return wrong("a standard stream, or no number at all");
    }
    // SAFETY: the borrow lives for one fcntl call, which only fails when the
    // number names no open file.
    #[allow(unsafe_code)]
    let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
    let flags = rustix::io::fcntl_getfd(borrowed)?;
    // Whatever this process opened itself is closed at exec (the standard
    // library and rustix see to it); what was inherited is not, until here.
    if flags.contains(rustix::io::FdFlags::CLOEXEC) {
        return wrong("not inherited");
    }
    let mut taken = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
    if !taken.insert(number) {
        return wrong("taken already");
    }
    rustix::io::fcntl_setfd(borrowed, rustix::io::FdFlags::CLOEXEC)?;
    // SAFETY: the file is open and was inherited, so that nothing in this
    // process owns it, and the set above gives it away once only.
    #[allow(unsafe_code)]
    let owned = unsafe { OwnedFd::from_raw_fd(number) };
    Ok(owned)
}

fn unshare(flags: UnshareFlags) -> Result<(), Errno> {
    // SAFETY: the callers never pass FILES, the one flag that could take file
    // descriptors away from under other threads.
    #[allow(unsafe_code)]
    unsafe {
        rustix::thread::unshare_unsafe(flags)
    }
}

/// The steps between fork and exec, in their order; the child reports the one
/// that failed through a pipe by its number.
const STEPS: [&str; 8] = [
    "joining the namespaces",
    "making the namespaces",
    "starting a session",
    "taking the controlling terminal",
    "asking to die with the parent",
    "changing the root directory",
    "entering the working directory",
    "executing the program",
];
const LAST_STEP: u8 = STEPS.len() as u8 - 1;

/// The name of the last step a child began. All writing ends are closed.
fn failed_step(mut report: io::PipeReader) -> &'static str {
    let mut steps = Vec::new();
    let last = match report.read_to_end(&mut steps) {
        Ok(_) => steps.last().copied().unwrap_or(LAST_STEP),
        Err(_) => LAST_STEP,
    };
    STEPS[usize::from(last.min(LAST_STEP))]
}

/// A program to start. Like `std::process::Command`, with namespaces.
///
/// Order of the steps in the child: join, unshare, session, terminal, parent
/// death signal, root directory, working directory, exec. The program's path
/// is therefore looked up inside the joined mount namespace and the new root.
#[derive(Debug)]
pub struct Launch {
    command: Command,
    program: OsString,
    join: Vec<(OwnedFd, Join)>,
    unshare: UnshareFlags,
    new_pid_namespace: bool,
    session: bool,
    controlling_terminal: bool,
    die_with_parent: Option<Signal>,
    root: Option<PathBuf>,
    directory: Option<PathBuf>,
    inherit: Vec<OwnedFd>,
}

#[derive(Clone, Copy, Debug)]
enum Join {
    Link(Namespace),
    Process(ThreadNameSpaceType),
}

impl Launch {
    /// A program by its path, or by its name to be searched in `PATH`.
    pub fn new(program: impl AsRef<OsStr>) -> Self {
        Self {
            command: Command::new(&program),
            program: program.as_ref().to_owned(),
            join: Vec::new(),
            unshare: UnshareFlags::empty(),
            new_pid_namespace: false,
            session: false,
            controlling_terminal: false,
            die_with_parent: None,
            root: None,
            directory: None,
            inherit: Vec::new(),
        }
    }

    /// The running executable itself (`/proc/self/exe`), also when its file
    /// has been replaced meanwhile.
    pub fn this_executable() -> Self {
        Self::new("/proc/self/exe")
    }

    /// The name the program sees as its own (`argv[0]`).
    pub fn arg0(mut self, name: impl AsRef<OsStr>) -> Self {
        self.command.arg0(name);
        self
    }

    /// One more argument.
    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.command.arg(argument);
        self
    }

    /// More arguments.
    pub fn args<A: AsRef<OsStr>>(mut self, arguments: impl IntoIterator<Item = A>) -> Self {
        self.command.args(arguments);
        self
    }

    /// Sets an environment variable.
    pub fn env(mut self, key: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.command.env(key, value);
        self
    }

    /// Starts from an empty environment.
    pub fn env_clear(mut self) -> Self {
        self.command.env_clear();
        self
    }

    /// Standard input; inherited when not set.
    pub fn stdin(mut self, stdio: impl Into<Stdio>) -> Self {
        self.command.stdin(stdio);
        self
    }

    /// Standard output; inherited when not set.
    pub fn stdout(mut self, stdio: impl Into<Stdio>) -> Self {
        self.command.stdout(stdio);
        self
    }

    /// Standard error; inherited when not set.
    pub fn stderr(mut self, stdio: impl Into<Stdio>) -> Self {
        self.command.stderr(stdio);
        self
    }

    /// Gives the program new namespaces. With [`Namespace::Pid`] it is the
    /// first process (number 1) of the new namespace.
    pub fn unshare(mut self, namespaces: impl IntoIterator<Item = Namespace>) -> Self {
        for namespace in namespaces {
            if namespace == Namespace::Pid {
                self.new_pid_namespace = true;
            } else {
                self.unshare |= namespace.unshare();
            }
        }
        self
    }

    /// Starts the program in the namespace of this file (see [`Namespace::of`]).
    pub fn join(mut self, namespace: Namespace, file: OwnedFd) -> Self {
        self.join.push((file, Join::Link(namespace)));
        self
    }

    /// Starts the program in these namespaces of the process a pidfd names, all
    /// or none. Needs Linux 5.8.
    pub fn join_process(
        mut self,
        pidfd: OwnedFd,
        namespaces: impl IntoIterator<Item = Namespace>,
    ) -> Self {
        let kinds = namespaces
            .into_iter()
            .fold(ThreadNameSpaceType::empty(), |kinds, one| {
                kinds | one.thread()
            });
        self.join.push((pidfd, Join::Process(kinds)));
        self
    }

    /// Makes the program the leader of a new session, away from the caller's
    /// terminal.
    pub fn session(mut self) -> Self {
        self.session = true;
        self
    }

    /// With [`Launch::session`]: standard input becomes the controlling
    /// terminal of the session.
    pub fn controlling_terminal(mut self) -> Self {
        self.session = true;
        self.controlling_terminal = true;
        self
    }

    /// Sends the program this signal when the *thread* that started it ends.
    /// Start it from a thread that lives as long as the process does. The
    /// kernel forgets this at the exec of a set-user-id program.
    pub fn die_with_parent(mut self, signal: Signal) -> Self {
        self.die_with_parent = Some(signal);
        self
    }

    /// The program's root directory, as seen after the namespaces are joined.
    pub fn root(mut self, root: impl Into<PathBuf>) -> Self {
        self.root = Some(root.into());
        self
    }

    /// The program's working directory, as seen in the new root.
    pub fn directory(mut self, directory: impl Into<PathBuf>) -> Self {
        self.directory = Some(directory.into());
        self
    }

    /// Hands an open file to the program under its present number
    /// (`file.as_raw_fd()`): all others are closed at exec.
    pub fn inherit(mut self, file: OwnedFd) -> Self {
        self.inherit.push(file);
        self
    }

    /// Starts the program.
    ///
    /// # Errors
    /// When a step fails: the error names the program and the step.
    pub fn spawn(mut self) -> Result<Child, Error> {
        let program = self.program.to_string_lossy().into_owned();
        let fail = |step: &'static str, source: io::Error| Error::Start {
            program: program.clone(),
            step,
            source,
        };
        let (report, step) = io::pipe().map_err(|e| fail("making a pipe", e))?;

        // Process-number namespaces take effect for children only, so that the
        // calling thread points its children at the wanted one and back.
        let children = (self.new_pid_namespace || self.joins_pid_namespace())
            .then(|| -> Result<ChildrenOf, io::Error> {
                let guard = ChildrenOf::remember()?;
                for (file, join) in &self.join {
                    match join {
                        Join::Link(Namespace::Pid) => {
                            rustix::thread::move_into_link_name_space(
                                file.as_fd(),
                                Some(LinkNameSpaceType::ProcessID),
                            )?;
                        }
                        Join::Process(kinds) if kinds.contains(ThreadNameSpaceType::PROCESS_ID) => {
                            rustix::thread::move_into_thread_name_spaces(
                                file.as_fd(),
                                ThreadNameSpaceType::PROCESS_ID,
                            )?;
                        }
                        Join::Link(_) | Join::Process(_) => {}
                    }
                }
                if self.new_pid_namespace {
                    unshare(UnshareFlags::NEWPID)?;
                }
                Ok(guard)
            })
            .transpose()
            .map_err(|e| fail("making the process number namespace", e))?;

        self.prepare(step.into())
            .map_err(|e| fail("preparing", e))?;
        let spawned = self.command.spawn();
        drop(children);
        // The command owns the writing end through its closure.
        drop(self.command);
        let child = spawned.map_err(|source| fail(failed_step(report), source))?;
        Child::new(child)
    }

    /// Replaces the calling process by the program, in the namespaces asked
    /// for. Returns only when that fails. Joined or new process-number
    /// namespaces have no effect here: they hold for children.
    pub fn exec(mut self) -> Error {
        let program = self.program.to_string_lossy().into_owned();
        let (source, step) = match io::pipe() {
            Ok((report, step)) => {
                let source = match self.prepare(step.into()) {
                    Ok(()) => self.command.exec(),
                    Err(error) => error,
                };
                // Closes the writing end, which its closure holds.
                drop(self.command);
                (source, failed_step(report))
            }
            Err(error) => (error, STEPS[0]),
        };
        Error::Start {
            program,
            step,
            source,
        }
    }

    fn joins_pid_namespace(&self) -> bool {
        self.join.iter().any(|(_, join)| match join {
            Join::Link(namespace) => *namespace == Namespace::Pid,
            Join::Process(kinds) => kinds.contains(ThreadNameSpaceType::PROCESS_ID),
        })
    }

    /// Adds the child's steps to the command.
    fn prepare(&mut self, report: OwnedFd) -> io::Result<()> {
        let c_string = |path: &Path| {
            CString::new(path.as_os_str().as_bytes())
                .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "a path with a zero byte"))
        };
        let root = self.root.as_deref().map(c_string).transpose()?;
        let directory = match (self.directory.as_deref(), &root) {
            (Some(directory), _) => Some(c_string(directory)?),
            (None, Some(_)) => Some(c"/".to_owned()),
            (None, None) => None,
        };
        let join = std::mem::take(&mut self.join);
        let inherit = std::mem::take(&mut self.inherit);
        let unshared = self.unshare;
        let (session, terminal) = (self.session, self.controlling_terminal);
        let die_with_parent = self.die_with_parent;
        let parent = rustix::process::getpid();

        let steps = move || -> Result<(), Errno> {
            let begin = |step: u8| {
                // A report that can't be written costs only the step's name.
                let _ = rustix::io::write(&report, &[step]);
            };
            begin(0);
            for (file, join) in &join {
                match join {
                    Join::Link(Namespace::Pid) => {}
                    Join::Link(namespace) => rustix::thread::move_into_link_name_space(
                        file.as_fd(),
                        Some(namespace.link()),
                    )?,
                    Join::Process(kinds) => {
                        let kinds = kinds.difference(ThreadNameSpaceType::PROCESS_ID);
                        if !kinds.is_empty() {
                            rustix::thread::move_into_thread_name_spaces(file.as_fd(), kinds)?;
                        }
                    }
                }
            }
            begin(1);
            if !unshared.is_empty() {
                unshare(unshared)?;
            }
            begin(2);
            if session {
                rustix::process::setsid()?;
            }
            begin(3);
            if terminal {
                // SAFETY: between fork and exec nobody closes the child's
                // standard input, which the command has put in place.
                #[allow(unsafe_code)]
                let stdin = unsafe { BorrowedFd::borrow_raw(0) };
                rustix::process::ioctl_tiocsctty(stdin)?;
            }
            begin(4);
            if let Some(signal) = die_with_parent {
                rustix::process::set_parent_process_death_signal(Some(signal))?;
                // The parent may have died before the request; in a new
                // process-number namespace its number reads as none.
                if rustix::process::getppid().is_some_and(|now| now != parent) {
                    return Err(Errno::SRCH);
                }
            }
            begin(5);
            if let Some(root) = &root {
                rustix::process::chroot(root.as_c_str())?;
            }
            begin(6);
            if let Some(directory) = &directory {
                rustix::process::chdir(directory.as_c_str())?;
            }
            for file in &inherit {
                rustix::io::fcntl_setfd(file, rustix::io::FdFlags::empty())?;
            }
            begin(LAST_STEP);
            Ok(())
        };
        // SAFETY: between fork and exec the closure only makes system calls on
        // what was prepared before the fork: it neither allocates nor takes a
        // lock, and it touches no memory another thread could hold half changed.
        #[allow(unsafe_code)]
        unsafe {
            self.command.pre_exec(move || {
                steps().map_err(|errno| io::Error::from_raw_os_error(errno.raw_os_error()))
            });
        }
        Ok(())
    }
}

/// Restores the process-number namespace of the calling thread's children.
struct ChildrenOf(OwnedFd);

impl ChildrenOf {
    fn remember() -> io::Result<Self> {
        std::fs::File::open("/proc/thread-self/ns/pid")
            .map(OwnedFd::from)
            .map(Self)
    }
}

impl Drop for ChildrenOf {
    fn drop(&mut self) {
        // Back to the own namespace, which the kernel always allows.
        let _ = rustix::thread::move_into_link_name_space(
            self.0.as_fd(),
            Some(LinkNameSpaceType::ProcessID),
        );
    }
}

/// A started child. Dropping it neither kills nor reaps.
#[derive(Debug)]
pub struct Child {
    /// The process, for signals and for waiting in poll.
    pub process: Process,
    /// Its standard input, when piped.
    pub stdin: Option<std::process::ChildStdin>,
    /// Its standard output, when piped.
    pub stdout: Option<std::process::ChildStdout>,
    /// Its standard error, when piped.
    pub stderr: Option<std::process::ChildStderr>,
    child: std::process::Child,
}

impl Child {
    fn new(mut child: std::process::Child) -> Result<Self, Error> {
        let pid = i32::try_from(child.id())
            .ok()
            .and_then(Pid::from_raw)
            .expect("the kernel's process numbers are positive and 32 bit");
        // Not reaped yet, so that the number still names the child.
        let process = Process::open(pid)?;
        Ok(Self {
            process,
            stdin: child.stdin.take(),
            stdout: child.stdout.take(),
            stderr: child.stderr.take(),
            child,
        })
    }

    /// Its number in the caller's namespace.
    pub fn pid(&self) -> Pid {
        self.process.pid
    }

    /// Waits for its end and reaps it.
    ///
    /// # Errors
    /// When somebody else reaped it.
    pub fn wait(&mut self) -> Result<ExitStatus, Error> {
        let pid = self.pid();
        self.child
            .wait()
            .map_err(|source| process_error("wait for", pid, source))
    }

    /// Its status, reaping it, when it has ended.
    ///
    /// # Errors
    /// When somebody else reaped it.
    pub fn try_wait(&mut self) -> Result<Option<ExitStatus>, Error> {
        let pid = self.pid();
        self.child
            .try_wait()
            .map_err(|source| process_error("wait for", pid, source))
    }
}

/// A process by its pidfd: never another one that got the same number.
#[derive(Debug)]
pub struct Process {
    pid: Pid,
    pidfd: OwnedFd,
}

impl AsFd for Process {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

impl AsRawFd for Process {
    fn as_raw_fd(&self) -> RawFd {
        self.pidfd.as_raw_fd()
    }
}

impl Process {
    /// Opens a process by its number. To be sure that the number still names
    /// the one meant, compare [`start_time`] afterwards.
    ///
    /// # Errors
    /// When there is none.
    pub fn open(pid: Pid) -> Result<Self, Error> {
        rustix::process::pidfd_open(pid, PidfdFlags::empty())
            .map(|pidfd| Self { pid, pidfd })
            .map_err(|errno| process_error("open", pid, errno.into()))
    }

    /// A process whose pidfd was received over a socket; `pid` is only shown
    /// in errors.
    pub fn from_pidfd(pid: Pid, pidfd: OwnedFd) -> Self {
        Self { pid, pidfd }
    }

    /// Its number.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// A second handle on the same process.
    ///
    /// # Errors
    /// When the limit of open files is reached.
    pub fn pidfd(&self) -> Result<OwnedFd, Error> {
        self.pidfd
            .try_clone()
            .map_err(|source| process_error("hold", self.pid, source))
    }

    /// Sends it a signal; a process that has ended already is no error.
    ///
    /// # Errors
    /// When the caller may not.
    pub fn signal(&self, signal: Signal) -> Result<(), Error> {
        match rustix::process::pidfd_send_signal(&self.pidfd, signal) {
            Ok(()) | Err(Errno::SRCH) => Ok(()),
            Err(errno) => Err(process_error("signal", self.pid, errno.into())),
        }
    }

    /// Waits until the process has ended (for a child: until it can be
    /// reaped); true when it has, false at the time-out. For a process number
    /// 1 this is after every process of its namespace has ended.
    ///
    /// # Errors
    /// When polling fails.
    pub fn wait_end(&self, timeout: Option<Duration>) -> Result<bool, Error> {
        let deadline = timeout.map(|timeout| Instant::now() + timeout);
        loop {
            let left = deadline.map(|deadline| {
                let left = deadline.saturating_duration_since(Instant::now());
                Timespec {
                    tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
                    tv_nsec: i64::from(left.subsec_nanos()),
                }
            });
            let mut fds = [PollFd::new(&self.pidfd, PollFlags::IN)];
            match rustix::event::poll(&mut fds, left.as_ref()) {
                Ok(ready) => return Ok(ready > 0),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(process_error("wait for", self.pid, errno.into())),
            }
        }
    }
}

fn process_error(action: &'static str, pid: Pid, source: io::Error) -> Error {
    Error::Process {
        action,
        pid: pid.as_raw_nonzero().get(),
        source,
    }
}

/// When a process was started, in clock ticks since the boot (field 22 of
/// `/proc/PID/stat`, proc(5)): with its number it names a process for good.
///
/// # Errors
/// When there is no such process.
pub fn start_time(pid: Pid) -> Result<u64, Error> {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero()))
        .map_err(|source| process_error("inspect", pid, source))?;
    parse_start_time(&stat).ok_or_else(|| {
        process_error(
            "inspect",
            pid,
            io::Error::new(io::ErrorKind::InvalidData, "unreadable stat file"),
        )
    })
}

fn parse_start_time(stat: &str) -> Option<u64> {
    // The second field is the program's name in brackets and may hold both
    // blanks and brackets itself.
    let (_, after_name) = stat.rsplit_once(')')?;
    after_name.split_ascii_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn output(mut child: Child) -> String {
        let mut text = String::new();
        child
            .stdout
            .take()
            .unwrap()
            .read_to_string(&mut text)
            .unwrap();
        assert!(child.wait().unwrap().success());
        text.trim().to_owned()
    }

    #[test]
    fn a_program_with_brackets_in_its_name_has_a_start_time() {
        let stat = "7 (a) b (c)) S 1 7 7 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 123456 9 9";
        assert_eq!(parse_start_time(stat), Some(123_456));
        assert_eq!(parse_start_time("7 (a) S 1"), None);
        assert_eq!(parse_start_time(""), None);
        assert!(start_time(rustix::process::getpid()).unwrap() > 0);
    }

    #[test]
    fn the_program_is_number_one_of_a_new_pid_namespace_and_the_caller_stays() {
        let before = std::fs::read_link("/proc/thread-self/ns/pid_for_children").unwrap();
        let child = Launch::new("sh")
            .args(["-c", "echo $$ $(readlink /proc/self/ns/net)"])
            .stdout(Stdio::piped())
            .unshare([Namespace::Pid, Namespace::Network])
            .spawn()
            .unwrap();
        let text = output(child);
        let own = std::fs::read_link("/proc/self/ns/net").unwrap();
        assert!(text.starts_with("1 net:["), "{text}");
        assert!(!text.ends_with(&*own.to_string_lossy()), "{text}");
        let after = std::fs::read_link("/proc/thread-self/ns/pid_for_children").unwrap();
        assert_eq!(before, after);
    }

    #[test]
    fn a_program_joins_the_namespaces_of_a_process() {
        let mut first = Launch::new("sh")
            .args(["-c", "hostname joined; echo ready; read line"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .unshare([Namespace::Uts, Namespace::Mount, Namespace::Pid])
            .spawn()
            .unwrap();
        let mut ready = [0; 6];
        first
            .stdout
            .as_mut()
            .unwrap()
            .read_exact(&mut ready)
            .unwrap();
        let second = Launch::new("sh")
            .args(["-c", "echo $(hostname) $$"])
            .stdout(Stdio::piped())
            .join_process(
                first.process.pidfd().unwrap(),
                [Namespace::Uts, Namespace::Mount, Namespace::Pid],
            )
            .spawn()
            .unwrap();
        let text = output(second);
        // Numbers in the small namespace are small.
        let (name, number) = text.split_once(' ').unwrap();
        assert_eq!(name, "joined");
        assert!((2..10).contains(&number.parse::<u32>().unwrap()), "{text}");
        drop(first.stdin.take());
        assert!(first.process.wait_end(None).unwrap());
        first.wait().unwrap();
    }

    #[test]
    fn an_error_names_the_program_and_the_step() {
        let missing = Launch::new("/no/such/program").spawn().unwrap_err();
        assert_eq!(
            missing.to_string(),
            "cannot start /no/such/program: executing the program: No such file or directory (os error 2)"
        );
        let root = Launch::new("true").root("/no/root").spawn().unwrap_err();
        assert!(
            root.to_string()
                .starts_with("cannot start true: changing the root directory: No such file"),
            "{root}"
        );
    }

    #[test]
    fn a_process_that_ended_can_be_signalled_and_waited_for() {
        let mut child = Launch::new("sleep").arg("1000").spawn().unwrap();
        assert!(
            !child
                .process
                .wait_end(Some(Duration::from_millis(1)))
                .unwrap()
        );
        child.process.signal(Signal::KILL).unwrap();
        assert!(child.process.wait_end(None).unwrap());
        assert!(!child.wait().unwrap().success());
        child.process.signal(Signal::KILL).unwrap();
        assert!(Process::open(child.pid()).is_err());
    }

    #[test]
    fn a_file_is_inherited_only_when_asked() {
        let (mut reader, writer) = io::pipe().unwrap();
        let (_other_reader, other) = io::pipe().unwrap();
        let writer = OwnedFd::from(writer);
        let script = format!(
            "echo hi >&{}; test ! -e /proc/self/fd/{}",
            writer.as_raw_fd(),
            other.as_raw_fd()
        );
        let mut child = Launch::new("bash")
            .args(["-c", &script])
            .inherit(writer)
            .spawn()
            .unwrap();
        assert!(child.wait().unwrap().success());
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "hi\n");
    }

    #[test]
    fn only_a_file_that_was_inherited_can_be_taken_over() {
        let (reader, _writer) = io::pipe().unwrap();
        assert!(take_inherited(reader.as_raw_fd()).is_err());
        for number in [-1, 0, 2, 9999] {
            assert!(take_inherited(number).is_err(), "{number}");
        }
        let kept = OwnedFd::from(reader).try_clone().unwrap();
        rustix::io::fcntl_setfd(&kept, rustix::io::FdFlags::empty()).unwrap();
        let number = std::os::fd::IntoRawFd::into_raw_fd(kept);
        let taken = take_inherited(number).unwrap();
        assert_eq!(taken.as_raw_fd(), number);
        assert!(take_inherited(number).is_err());
    }
}
