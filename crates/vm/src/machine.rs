//! The emulator and its console.

use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use crate::Error;

/// `mitigations=off` to `nokaslr`: seconds of the boot under emulation.
const COMMAND_LINE: &str = "console=ttyS0 quiet panic=-1 mitigations=off tsc=reliable \
    no_timer_check random.trust_cpu=on lsm=capability audit=0 cryptomgr.notests nokaslr";

/// What the guest's init prints before the exit code of its work.
pub(crate) const RESULT: &str = "GUEST-RC ";

/// What tells the guest's time.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Clock {
    /// The machine's.
    Time,
    /// 125 million instructions are a second, about what is emulated in one; while
    /// the guest waits, its time passes at once.
    Instructions,
}

/// Boots `kernel` with `image` and waits until its work is done: gives the exit
/// code and what was written to the console.
pub(crate) fn run(
    kernel: &Path,
    image: &Path,
    memory: u64,
    clock: Clock,
    limit: Duration,
) -> Result<(i32, String), Error> {
    let until = Instant::now() + limit;
    let clock: &[&str] = match clock {
        Clock::Time => &[],
        // An instruction takes 2^3 ns.
        Clock::Instructions => &["-icount", "shift=3,sleep=off"],
    };
    // setpriv: the emulator must not outlive a test that is killed.
    let child = Command::new("setpriv")
        .args(["--pdeathsig", "KILL", "qemu-system-x86_64"])
        // Without cmpxchg16b: with it, guests crashed now and then.
        .args(["-M", "q35", "-accel", "tcg", "-cpu", "qemu64,-cx16"])
        .args(["-m", &memory.to_string()])
        .args(clock)
        .args(["-nographic", "-no-reboot", "-nodefaults", "-net", "none"])
        .args(["-serial", "stdio", "-append", COMMAND_LINE])
        .arg("-kernel")
        .arg(kernel)
        .arg("-initrd")
        .arg(image)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(Error::io(
            "start the emulator qemu-system-x86_64 by setpriv (`cargo xtask setup` installs both)",
        ))?;
    let mut emulator = Emulator(child);
    let (sender, receiver) = mpsc::channel();
    let streams: [Option<Box<dyn Read + Send>>; 2] = [
        emulator.0.stdout.take().map(|stream| Box::new(stream) as _),
        emulator.0.stderr.take().map(|stream| Box::new(stream) as _),
    ];
    for mut stream in streams.into_iter().flatten() {
        let sender = sender.clone();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(length @ 1..) = stream.read(&mut buffer) {
                if sender.send(buffer[..length].to_vec()).is_err() {
                    return;
                }
            }
        });
    }
    drop(sender);
    let mut console = Vec::new();
    loop {
        match receiver.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(bytes) => console.extend(bytes),
            Err(RecvTimeoutError::Timeout) => {
                return Err(Error::Deadline {
                    limit,
                    console: text(&console),
                });
            }
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    let console = text(&console);
    match code(&console) {
        Some(code) => Ok((code, console)),
        None => Err(Error::Died { console }),
    }
}

/// The exit code in the last line that gives one.
fn code(console: &str) -> Option<i32> {
    let (_, rest) = console.rsplit_once(RESULT)?;
    let digits = rest.find(|c: char| !c.is_ascii_digit())?;
    rest[..digits].parse().ok()
}

/// Without carriage returns and the firmware's escape sequences.
fn text(console: &[u8]) -> String {
    let text = String::from_utf8_lossy(console).replace('\r', "");
    match text.rfind("\x1b[") {
        Some(at) if at < 1024 => {
            let rest = &text[at + 2..];
            let end = rest.find(|c: char| c.is_ascii_alphabetic());
            rest[end.map_or(0, |end| end + 1)..].to_owned()
        }
        _ => text,
    }
}

/// Ends with its handle.
struct Emulator(Child);

impl Drop for Emulator {
    fn drop(&mut self) {
        // Fails only when it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_result_is_read_from_a_whole_line_only() {
        assert_eq!(code("x\nGUEST-RC 101\n"), Some(101));
        assert_eq!(code("GUEST-RC 0\nmore"), Some(0));
        assert_eq!(code("GUEST-RC 1"), None);
        assert_eq!(code("kernel panic\n"), None);
    }
}
