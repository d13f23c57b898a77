//! Links the plugin's binary statically with glibc, where its archive is there.
//!
//! The plugin is started for every pod that comes or goes: without a dynamic
//! loader it starts in about half the time. Cargo has no `crt-static` for one binary
//! alone (of a whole build it forbids procedural macros), so this says it to the
//! linker: the libraries that rustc names are found first in a folder of
//! linker scripts, which lead to the archives.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs, io};

/// What rustc links with on `*-linux-gnu`, and what to take instead.
const LIBRARIES: [(&str, &str); 7] = [
    // The two need each other.
    ("gcc_s", "GROUP(-l:libgcc_eh.a -l:libgcc.a -l:libc.a)"),
    ("c", "GROUP(-l:libgcc_eh.a -l:libgcc.a -l:libc.a)"),
    ("m", "INPUT(-l:libm.a)"),
    ("pthread", "INPUT(-l:libpthread.a)"),
    ("rt", "INPUT(-l:librt.a)"),
    ("dl", "INPUT(-l:libdl.a)"),
    ("util", "INPUT(-l:libutil.a)"),
];

fn main() -> io::Result<()> {
    println!("cargo:rerun-if-changed=build.rs");
    let variable = |name| env::var(name).unwrap_or_default();
    let glibc = variable("CARGO_CFG_TARGET_OS") == "linux"
        && variable("CARGO_CFG_TARGET_ENV") == "gnu"
        && variable("HOST") == variable("TARGET");
    let linker = env::var("RUSTC_LINKER").unwrap_or_else(|_| "cc".to_owned());
    if !(glibc
        && ["libc.a", "libm.a", "libgcc_eh.a"]
            .iter()
            .all(|archive| finds(&linker, archive)))
    {
        // Dynamic, as everything else.
        return Ok(());
    }
    let folder = PathBuf::from(variable("OUT_DIR")).join("static");
    fs::create_dir_all(&folder)?;
    for (library, script) in LIBRARIES {
        fs::write(folder.join(format!("lib{library}.so")), script)?;
    }
    for argument in ["-static", "-no-pie", &format!("-L{}", folder.display())] {
        println!("cargo:rustc-link-arg-bin=podwire-cni={argument}");
    }
    Ok(())
}

/// Whether the C compiler that links knows where an archive is.
fn finds(linker: &str, archive: &str) -> bool {
    Command::new(linker)
        .arg(format!("-print-file-name={archive}"))
        .output()
        .is_ok_and(|output| Path::new(String::from_utf8_lossy(&output.stdout).trim()).is_absolute())
}
