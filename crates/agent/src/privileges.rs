//! Whether this process may change the network.

/// The bit of CAP_NET_ADMIN (include/uapi/linux/capability.h).
const CAP_NET_ADMIN: u32 = 12;

/// Whether the calling thread has CAP_NET_ADMIN in effect. When that cannot be found
/// out it is assumed: the kernel's own refusal will tell.
pub(crate) fn may_change_network() -> bool {
    match std::fs::read_to_string("/proc/thread-self/status") {
        Ok(status) => has_capability(&status, CAP_NET_ADMIN).unwrap_or(true),
        Err(_) => true,
    }
}

/// Reads proc(5)'s `CapEff`.
fn has_capability(status: &str, bit: u32) -> Option<bool> {
    let set = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))?;
    let set = u64::from_str_radix(set.trim(), 16).ok()?;
    Some(set >> bit & 1 == 1)
}

#[cfg(test)]
mod tests {
    use rustix::thread::{CapabilitySet, capabilities, set_capabilities};

    use super::*;

    #[test]
    fn an_agent_that_may_not_change_the_network_says_so_and_does_not_start() {
        // Capabilities are a thread's own.
        let without = || {
            let mut sets = capabilities(None).unwrap();
            sets.effective.remove(CapabilitySet::NET_ADMIN);
            set_capabilities(None, sets).unwrap();
            let options = crate::Options {
                kubeconfig: Some("/nowhere".into()),
                no_cni_conf: true,
                ..crate::Options::new("n")
            };
            crate::run_until(options, std::future::pending()).unwrap_err()
        };
        let error = std::thread::spawn(without).join().unwrap();
        assert!(matches!(error, crate::Error::NotPermitted), "{error}");
        assert!(error.to_string().contains("CAP_NET_ADMIN"));
    }

    #[test]
    fn the_effective_set_decides() {
        let with = "Name:\tx\nCapPrm:\t0000000000000000\nCapEff:\t0000000000001000\n";
        assert_eq!(has_capability(with, CAP_NET_ADMIN), Some(true));
        let without = "CapPrm:\t000001ffffffffff\nCapEff:\t000001ffffffefff\n";
        assert_eq!(has_capability(without, CAP_NET_ADMIN), Some(false));
        assert_eq!(has_capability("", CAP_NET_ADMIN), None);
    }
}
