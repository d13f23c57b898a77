//! Settings of the kernel (sysctls) a node needs to carry pod traffic.

use std::time::Duration;

use linux::sysctl::{Error, Family, Setting};
use routing::Underlay;

use crate::options::{Attach, Options};

/// For how long conntrack keeps TCP connections: of a state by its name in the
/// setting's. What the time is zero of is left as it is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Timeouts([(&'static str, Duration); 2]);

impl Timeouts {
    pub(crate) fn of(options: &Options) -> Timeouts {
        Timeouts([
            ("established", options.conntrack_tcp_timeout_established),
            ("close_wait", options.conntrack_tcp_timeout_close_wait),
        ])
    }
}

/// Brings the settings of the calling thread's network namespace to what pod
/// traffic needs. Returns what is not as it should be, for people.
pub(crate) fn apply(underlay: &Underlay, attach: Attach, timeouts: Timeouts) -> Vec<String> {
    let mut problems = Vec::new();
    let mut report = |result: Result<(), Error>| {
        if let Err(error) = result {
            problems.push(error.to_string());
        }
    };
    // A forwarding host ignores router advertisements unless told otherwise
    // (accept_ra = 2), and turning forwarding on drops the default routes it
    // learned from them: tell it first.
    let forwards = Setting::forwarding(Family::V6).read().unwrap_or(0) != 0;
    for interface in underlay.interfaces.values() {
        let accept = Setting::of_interface(Family::V6, &interface.name, "accept_ra");
        if !forwards && accept.read().is_ok_and(|value| value == 1) {
            report(accept.write(2));
        }
    }
    for family in [Family::V4, Family::V6] {
        report(present(Setting::forwarding(family).write_if_present(1)));
    }
    // The strict reverse path filter (RFC 3704) drops answers that come in by
    // another interface than the kernel would ask through. The larger of "all"
    // and the interface's own value counts.
    let all = Setting::of_interface(Family::V4, "all", "rp_filter")
        .read()
        .unwrap_or(0);
    for interface in underlay.interfaces.values() {
        let filter = Setting::of_interface(Family::V4, &interface.name, "rp_filter");
        if filter.read().is_ok_and(|own| own.max(all) == 1) {
            report(present(filter.write_if_present(2)));
        }
    }
    for (state, time) in timeouts.0.iter().filter(|(_, time)| !time.is_zero()) {
        let setting = Setting::new(format!("netfilter/nf_conntrack_tcp_timeout_{state}"));
        let seconds = i64::try_from(time.as_secs().max(1)).unwrap_or(i64::MAX);
        // The kernel has none until something asks for conntrack.
        report(present(setting.write_if_present(seconds)));
    }
    if attach == Attach::Bridge {
        for setting in ["bridge-nf-call-iptables", "bridge-nf-call-ip6tables"] {
            match Setting::new(format!("bridge/{setting}")).write_if_present(1) {
                Ok(true) => {}
                Ok(false) => problems.push(format!(
                    "the kernel has no net.bridge.{setting}: answers of Services to pods on the \
                     same bridge will not be translated back; load the module br_netfilter, or \
                     use --attach routed, which does not need it"
                )),
                Err(error) => problems.push(error.to_string()),
            }
        }
    }
    problems
}

/// A setting the kernel does not have (IPv6 turned off, the interface gone) is fine.
fn present(result: Result<bool, Error>) -> Result<(), Error> {
    result.map(|_| ())
}
