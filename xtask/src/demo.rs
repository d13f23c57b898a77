//! `cargo xtask demo`: from a fresh machine to a cluster that answers.

use crate::{setup, shell};

const LAB: &str = "demo";

/// Builds podwire, brings the lab up, shows it at work and says what to try next.
pub(crate) fn run() -> anyhow::Result<()> {
    setup::install(setup::Purpose::Run)?;
    shell::run(shell::command("cargo", &["build", "--release", "--bins"]))?;
    let podwire = shell::root().join("target/release/podwire");
    let podwire = podwire.to_string_lossy();
    shell::run(shell::root_command(
        &podwire,
        &[
            "lab",
            "up",
            "--name",
            LAB,
            "--nodes",
            "2",
            "-f",
            "examples/shop.yaml",
        ],
    ))?;

    println!("\nFrom a pod, ten times the Service that both nodes serve, by its name:");
    shell::run(shell::root_command(
        &podwire,
        &[
            "lab",
            "exec",
            "--name",
            LAB,
            "web-0",
            "--",
            "toolbox",
            "get",
            "--count",
            "10",
            "http://web:8080/hostname",
        ],
    ))?;
    println!("\nThrough the API, with the ordinary kubectl:");
    let kubeconfig = format!("--kubeconfig=/run/podwire/lab/{LAB}/kubeconfig");
    shell::run(shell::command(
        "kubectl",
        &[&kubeconfig, "get", "nodes,pods,services", "-o", "wide"],
    ))?;

    println!(
        "
Look around:
  export KUBECONFIG=$({podwire} lab kubeconfig --name {LAB})
  kubectl get pods -A -o wide
  kubectl scale deployment/catalog --replicas=5
  sudo {podwire} lab status --name {LAB}
  sudo {podwire} lab exec --name {LAB} web-0 -- curl -s http://web:8080
  sudo {podwire} lab node add --name {LAB}
Take it down:
  sudo {podwire} lab down --name {LAB}"
    );
    Ok(())
}
