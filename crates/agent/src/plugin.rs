//! Installing the CNI plugin where the container runtime looks for it.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

/// The plugin's file name.
const NAME: &str = "podwire-cni";

/// Installs the plugin found beside this executable. Returns where, when it
/// was not there already.
///
/// # Errors
/// What cannot be read or written, in words.
pub(crate) fn install(directory: &Path) -> Result<Option<PathBuf>, String> {
    let own = std::env::current_exe()
        .map_err(|error| format!("cannot find podwire's own executable: {error}"))?;
    let source = own.with_file_name(NAME);
    let target = directory.join(NAME);
    let copied = copy(&source, &target).map_err(|error| {
        format!(
            "cannot install the CNI plugin {} as {}: {error}; put {NAME} beside podwire, or leave \
             --cni-bin-dir out and install it yourself",
            source.display(),
            target.display()
        )
    })?;
    Ok(copied.then_some(target))
}

/// Copies an executable so that nobody ever runs half of it, and a running one
/// can be replaced. Returns whether it was not the same already.
fn copy(source: &Path, target: &Path) -> io::Result<bool> {
    let bytes = fs::read(source)?;
    if fs::read(target).is_ok_and(|there| there == bytes) {
        return Ok(false);
    }
    let directory = target.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(directory)?;
    let temporary = directory.join(format!(".{NAME}.new"));
    fs::write(&temporary, &bytes)?;
    fs::set_permissions(&temporary, fs::Permissions::from_mode(0o755))?;
    fs::rename(&temporary, target)?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_copied_once_and_again_when_it_is_another() {
        let directory = tempfile::tempdir().unwrap();
        let (source, target) = (
            directory.path().join("new"),
            directory.path().join("bin/podwire-cni"),
        );
        fs::write(&source, "one").unwrap();
        assert!(copy(&source, &target).unwrap());
        assert!(!copy(&source, &target).unwrap());
        assert_eq!(
            fs::metadata(&target).unwrap().permissions().mode() & 0o777,
            0o755
        );
        fs::write(&source, "two").unwrap();
        assert!(copy(&source, &target).unwrap());
        assert_eq!(fs::read_to_string(&target).unwrap(), "two");
        assert_eq!(fs::read_dir(target.parent().unwrap()).unwrap().count(), 1);
    }

    #[test]
    fn a_plugin_that_is_not_there_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let error = install(directory.path()).unwrap_err();
        assert!(
            error.contains(NAME) && error.contains("--cni-bin-dir"),
            "{error}"
        );
    }
}
