//! The virtual machine itself: what happens inside is told truthfully outside.
#![allow(clippy::unwrap_used, reason = "tests say what they expect with unwrap")]

use podwire_vm::{Error, Feature, Guest};

#[test]
fn the_outcome_of_every_case_comes_out_of_the_guest_with_what_a_failed_one_said() {
    let error = Guest::new()
        .needs(Feature::Ipip)
        .needs(Feature::WireGuard)
        .needs(Feature::Ipvs)
        .needs(Feature::Dummy)
        .without_module("nft_limit")
        .environment("TOLD", "it's 5 o'clock")
        .counts_instructions()
        .run_cases_in_machine("guest::")
        .unwrap_err();
    let Error::Failed {
        failed,
        code,
        output,
    } = error
    else {
        panic!("not told that a case failed: {error}");
    };
    assert_eq!(
        failed, "1 of 5 failed: guest::a_case_that_fails",
        "{output}"
    );
    assert_eq!(code, 101, "the code of libtest");
    assert!(output.contains("assertion `left == right` failed: four is not five"));
}

#[test]
fn a_module_that_the_guests_kernel_does_not_have_is_named() {
    let error = Guest::new()
        .module("no-such-module")
        .run_script("true")
        .unwrap_err();
    let text = error.to_string();
    assert!(text.contains("has no module no_such_module"), "{text}");
}

#[test]
fn a_program_that_is_not_installed_is_named() {
    let error = Guest::new()
        .program("no-such-program")
        .run_script("true")
        .unwrap_err();
    let text = error.to_string();
    assert!(text.contains("program no-such-program is not"), "{text}");
}

/// Run in the guest by the first test above.
mod guest {
    use std::hint::black_box;
    use std::process::Command;
    use std::time::Instant;

    fn ip(arguments: &str) -> bool {
        Command::new("ip")
            .args(arguments.split(' '))
            .status()
            .unwrap()
            .success()
    }

    #[test]
    #[ignore = "for the guest"]
    fn the_kernel_has_what_the_features_name() {
        for kind in [
            "ipip local 127.0.0.1",
            "wireguard",
            "dummy",
            "veth",
            "bridge",
            "vxlan id 1 dstport 0",
        ] {
            assert!(ip(&format!("link add name probe type {kind}")), "{kind}");
            assert!(ip("link del name probe"));
        }
        assert!(std::fs::read_to_string("/proc/net/ip_vs").is_ok());
    }

    #[test]
    #[ignore = "for the guest"]
    fn a_module_left_out_is_not_there() {
        assert!(!std::path::Path::new("/sys/module/nft_limit").exists());
        assert!(std::path::Path::new("/sys/module/nft_hash").exists());
    }

    #[test]
    #[ignore = "for the guest"]
    fn a_case_knows_that_it_is_in_a_guest_and_has_its_environment() {
        assert!(podwire_vm::in_guest());
        assert_eq!(std::env::var("TOLD").unwrap(), "it's 5 o'clock");
        let nested = podwire_vm::Guest::new().run_script("true").unwrap_err();
        assert!(matches!(nested, podwire_vm::Error::Nested(_)), "{nested}");
    }

    #[test]
    #[ignore = "for the guest"]
    fn where_the_clock_counts_instructions_the_same_work_takes_the_same_time() {
        let work = || {
            let start = Instant::now();
            let sum = (0..1_000_000_u64).fold(0, |sum, number| black_box(sum ^ number));
            assert_eq!(black_box(sum), 0);
            start.elapsed().as_secs_f64()
        };
        // The first translates what the others only run.
        work();
        let times: Vec<f64> = (0..5).map(|_| work()).collect();
        for time in &times {
            assert!((time / times[0] - 1.0).abs() < 0.05, "{times:?}");
        }
    }

    #[test]
    #[ignore = "fails, to show that failing is told"]
    fn a_case_that_fails() {
        assert_eq!(4, 5, "four is not five");
    }
}
