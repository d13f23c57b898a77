//! The process that holds a pod's namespaces while containers come and go.
//!
//! The kubelet starts it in new network, IPC and UTS namespaces (or the node's,
//! for a pod on the node's network) with its settings in the environment.

use std::io::Write;

use crate::Error;

/// The pod's host name.
pub(crate) const HOSTNAME: &str = "PODWIRE_PAUSE_HOSTNAME";
/// Kernel parameters as a JSON object, names with dots.
pub(crate) const SYSCTLS: &str = "PODWIRE_PAUSE_SYSCTLS";
/// Set when the network namespace is the pod's own.
pub(crate) const OWN_NETWORK: &str = "PODWIRE_PAUSE_OWN_NETWORK";

/// Prepares the namespaces it was started in, prints `ready` and stays until
/// it is killed.
///
/// # Errors
/// When the host name, a kernel parameter or the loopback link can't be set.
pub fn run() -> Result<(), Error> {
    let fail = |action: &str, reason: &dyn std::fmt::Display| Error::Helper {
        action: action.into(),
        reason: reason.to_string(),
    };
    if let Ok(hostname) = std::env::var(HOSTNAME) {
        rustix::system::sethostname(hostname.as_bytes())
            .map_err(|errno| fail(&format!("setting the pod's host name {hostname}"), &errno))?;
    }
    if std::env::var_os(OWN_NETWORK).is_some() {
        crate::container::loopback_up()
            .map_err(|error| fail("bringing up the pod's lo", &error))?;
    }
    if let Ok(sysctls) = std::env::var(SYSCTLS) {
        let sysctls: std::collections::BTreeMap<String, String> = serde_json::from_str(&sysctls)
            .map_err(|error| fail("reading the pod's sysctls", &error))?;
        for (name, value) in sysctls {
            let file = format!("/proc/sys/{}", name.replace('.', "/"));
            std::fs::write(&file, &value).map_err(|error| {
                fail(&format!("setting the pod's sysctl {name}={value}"), &error)
            })?;
        }
    }
    let mut stdout = std::io::stdout();
    stdout
        .write_all(b"ready\n")
        .and_then(|()| stdout.flush())
        .map_err(|error| fail("reporting to the kubelet", &error))?;
    // The kubelet reads to the end of the pipe.
    let null = std::fs::File::options()
        .write(true)
        .open("/dev/null")
        .map_err(|error| fail("opening /dev/null", &error))?;
    rustix::stdio::dup2_stdout(&null).map_err(|errno| fail("letting go of the pipe", &errno))?;
    loop {
        std::thread::park();
    }
}
