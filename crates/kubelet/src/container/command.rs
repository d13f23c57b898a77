use std::process::Stdio;

use tokio::io::AsyncReadExt;

use crate::paths;

/// As much of a command's output as is kept.
const OUTPUT_LIMIT: u64 = 10 * 1024;

/// Runs a command in a container; its exit code and the beginning of what it
/// printed. Dropping the future kills the command.
///
/// # Errors
/// When the runtime can't be started.
pub(crate) async fn run(id: &str, words: &[String]) -> Result<(i32, String), String> {
    let mut child = tokio::process::Command::new("crun")
        .args([
            "--root",
            paths::CRUN_ROOT,
            "--cgroup-manager=disabled",
            "exec",
            id,
        ])
        .args(words)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| format!("running crun exec: {error}"))?;
    let mut output = Vec::new();
    let mut errors = Vec::new();
    if let (Some(stdout), Some(stderr)) = (child.stdout.take(), child.stderr.take()) {
        let (mut stdout, mut stderr) = (stdout.take(OUTPUT_LIMIT), stderr.take(OUTPUT_LIMIT));
        let _ = tokio::join!(
            stdout.read_to_end(&mut output),
            stderr.read_to_end(&mut errors)
        );
    }
    let status = child
        .wait()
        .await
        .map_err(|error| format!("waiting for crun exec: {error}"))?;
    output.extend(errors);
    let text = String::from_utf8_lossy(&output).trim_end().to_owned();
    Ok((status.code().unwrap_or(255), text))
}
