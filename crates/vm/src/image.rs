//! The guest's file system: what the programs need and no more.

use std::collections::BTreeSet;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::Error;
use crate::archive::Archive;
use crate::kernel::Module;
use crate::machine::RESULT;

/// Where the guest has what is its own: the test binary, its modules and its
/// work. No path of the machine is likely to begin so.
pub(crate) const OWN: &str = "/podwire-guest";
/// Where programs brought by name stand in the guest.
const PROGRAMS: &str = "/usr/bin";
/// The guest's search path: the applets of busybox come last.
pub(crate) const SEARCH_PATH: &str = "/usr/bin:/usr/sbin:/sbin:/bin";

/// A file system being put together.
#[derive(Debug, Default)]
pub(crate) struct Image {
    archive: Archive,
    libraries: BTreeSet<PathBuf>,
}

impl Image {
    /// With busybox, its applets and the directories everybody expects.
    pub(crate) fn new() -> Result<Self, Error> {
        let mut image = Self::default();
        for directory in [
            "dev", "etc", "mnt", "opt", "proc", "root", "run", "sbin", "sys", "tmp", "usr/bin",
            "usr/sbin", "var/lib", "var/log", "var/tmp",
        ] {
            image.archive.directory(directory);
        }
        image.archive.device("dev/console", 5, 1);
        image.archive.device("dev/null", 1, 3);
        let busybox = locate(Path::new("busybox"))?;
        image.put(&busybox, "/bin/busybox")?;
        let applets = output(
            Command::new(&busybox).arg("--list"),
            "list busybox's applets",
        )?;
        for applet in applets.lines() {
            image.archive.link(&format!("bin/{applet}"), "busybox");
        }
        image.text("etc/passwd", "root:x:0:0:root:/root:/usr/bin/bash\n");
        image.text("etc/group", "root:x:0:\n");
        image.text("etc/hosts", "127.0.0.1 localhost\n::1 localhost\n");
        Ok(image)
    }

    /// Adds a text file.
    pub(crate) fn text(&mut self, path: &str, content: &str) {
        self.archive.file(path, 0o755, content.as_bytes());
    }

    /// Adds a program of the search path by its name, or one by its path,
    /// where it then stands in the guest too; with the libraries it loads.
    pub(crate) fn program(&mut self, program: &Path) -> Result<(), Error> {
        let found = locate(program)?;
        let place = if program.is_absolute() {
            program.to_string_lossy().into_owned()
        } else {
            format!("{PROGRAMS}/{}", program.display())
        };
        self.stripped(&found, &place)
    }

    /// Adds a file or all that is below a directory, at the same path, with
    /// the libraries that programs and libraries among them load.
    pub(crate) fn tree(&mut self, path: &Path) -> Result<(), Error> {
        let purpose = || format!("bring {} into the guest", path.display());
        if path.is_dir() {
            self.archive.directory(&path.to_string_lossy());
            for entry in std::fs::read_dir(path).map_err(Error::io(purpose()))? {
                self.tree(&entry.map_err(Error::io(purpose()))?.path())?;
            }
            return Ok(());
        }
        self.put(path, &path.to_string_lossy())?;
        self.libraries_of(path)
    }

    /// Adds a program at a place, without its debugging information, which
    /// would be most of the guest's memory; with the libraries it loads.
    pub(crate) fn stripped(&mut self, binary: &Path, place: &str) -> Result<(), Error> {
        let mut start = [0; 4];
        let read = std::fs::File::open(binary).and_then(|mut file| file.read_exact(&mut start));
        if read.is_err() || &start != b"\x7fELF" {
            return self.put(binary, place); // a script
        }
        let stripped = tempfile::NamedTempFile::new().map_err(Error::io("make a file"))?;
        output(
            Command::new("strip")
                .args(["--strip-debug", "-o"])
                .arg(stripped.path())
                .arg(binary),
            "strip a program for the guest (strip of binutils)",
        )?;
        self.put(stripped.path(), place)?;
        self.libraries_of(binary)
    }

    /// Adds modules and, as `/init`, the script that loads them and runs
    /// `work`, lines for bash.
    pub(crate) fn boot(mut self, modules: &[Module], work: &str) -> Vec<u8> {
        let mut list = String::new();
        for module in modules {
            self.archive.file(
                &format!("{OWN}/modules/{}.ko", module.name),
                0o644,
                &module.content,
            );
            list.push_str(&module.name);
            list.push('\n');
        }
        self.text(&format!("{OWN}/modules/order"), &list);
        self.text(&format!("{OWN}/work"), work);
        let init = INIT
            .replace("RESULT", RESULT.trim_end())
            .replace("OWN", OWN);
        self.text("init", &init);
        self.archive.finish()
    }

    fn put(&mut self, from: &Path, place: &str) -> Result<(), Error> {
        if self.archive.has(place) {
            return Ok(());
        }
        let content = std::fs::read(from).map_err(Error::io(format!("read {}", from.display())))?;
        self.archive.file(place, 0o755, &content);
        Ok(())
    }

    /// Adds the libraries that `ldd` names for a program or library, at the
    /// paths it names. What is linked statically, or no binary, has none.
    fn libraries_of(&mut self, binary: &Path) -> Result<(), Error> {
        let Ok(listed) = Command::new("ldd").arg(binary).output() else {
            return Err(Error::NoProgram {
                program: "ldd".into(),
            });
        };
        for line in String::from_utf8_lossy(&listed.stdout).lines() {
            let Some(path) = line.split_whitespace().find(|word| word.starts_with('/')) else {
                continue;
            };
            let path = PathBuf::from(path.trim_end_matches(':'));
            if path != binary && self.libraries.insert(path.clone()) {
                self.put(&path, &path.to_string_lossy())?;
            }
        }
        Ok(())
    }
}

/// The first process of the guest. The bind mount over `/` is there for
/// pivot_root, which the kernel refuses on its very first file system.
const INIT: &str = r#"#!/bin/sh
export PATH=/bin
mount --bind / /mnt
cd /mnt
mount --move . /
exec chroot . /bin/sh -c '
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs shm /dev/shm
mount -t cgroup2 cgroup /sys/fs/cgroup
mount -t bpf bpf /sys/fs/bpf
mount -t tracefs trace /sys/kernel/tracing
mkdir -p /run/netns
ln -s /proc/self/fd /dev/fd
while read -r module; do
    insmod OWN/modules/$module.ko || echo "the guest cannot load the module $module"
done <OWN/modules/order
/usr/bin/bash OWN/work </dev/null
echo "RESULT $?"
poweroff -f
'
"#;

/// Finds a program by name in the search path and where system programs
/// stand, or checks that one named by its path is there.
fn locate(program: &Path) -> Result<PathBuf, Error> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|directory| directory.join(program))
        .find(|candidate| candidate.is_file())
        .ok_or_else(|| Error::NoProgram {
            program: program.to_owned(),
        })
}

/// What a command writes; a failure of it is an error with its own words.
fn output(command: &mut Command, purpose: &str) -> Result<String, Error> {
    let output = command.output().map_err(Error::io(purpose))?;
    if !output.status.success() {
        return Err(Error::Io {
            purpose: purpose.to_owned(),
            source: std::io::Error::other(String::from_utf8_lossy(&output.stderr).into_owned()),
        });
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
