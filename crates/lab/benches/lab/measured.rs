//! A lab under the clock.

use std::{
    io::Write,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, bail};

/// A running lab; taken down when dropped.
pub(crate) struct Lab {
    podwire: String,
    pub(crate) name: String,
    /// From the command's start to its end with everything ready.
    pub(crate) took: Duration,
}

/// A Deployment of so many toolbox pods.
pub(crate) fn deployment(replicas: usize) -> anyhow::Result<tempfile::NamedTempFile> {
    let mut file = tempfile::Builder::new().suffix(".yaml").tempfile()?;
    write!(
        file,
        "
apiVersion: apps/v1
kind: Deployment
metadata: {{name: many}}
spec:
  replicas: {replicas}
  selector: {{matchLabels: {{app: many}}}}
  template:
    metadata: {{labels: {{app: many}}}}
    spec:
      terminationGracePeriodSeconds: 0
      containers:
      - {{name: http, image: podwire.dev/toolbox, ports: [{{containerPort: 8080}}]}}
---
apiVersion: v1
kind: Service
metadata: {{name: many}}
spec:
  selector: {{app: many}}
  ports: [{{port: 80, targetPort: 8080}}]
"
    )?;
    Ok(file)
}

/// The median of several takes; a take's second part is dropped after its
/// time has been taken.
pub(crate) fn median<T>(
    rounds: usize,
    mut take: impl FnMut() -> anyhow::Result<(Duration, T)>,
) -> anyhow::Result<Duration> {
    let mut all = Vec::new();
    for _ in 0..rounds {
        let (took, made) = take()?;
        drop(made);
        all.push(took);
    }
    all.sort();
    all.get(rounds / 2).copied().context("no rounds")
}

impl Lab {
    pub(crate) fn up(
        podwire: &str,
        name: &str,
        nodes: usize,
        manifest: &str,
    ) -> anyhow::Result<Self> {
        let mut lab = Self {
            podwire: podwire.into(),
            name: name.into(),
            took: Duration::ZERO,
        };
        let start = Instant::now();
        lab.podwire(&[
            "up",
            "--nodes",
            &nodes.to_string(),
            "-f",
            manifest,
            "--wait-timeout",
            "180s",
        ])?;
        lab.took = start.elapsed();
        Ok(lab)
    }

    /// One more node, until its Node object is Ready.
    pub(crate) fn node_added(&self) -> anyhow::Result<(Duration, ())> {
        let start = Instant::now();
        self.podwire(&["node", "add"])?;
        Ok((start.elapsed(), ()))
    }

    /// One more pod, from the start of `kubectl apply` until it is Ready.
    pub(crate) fn pod_added(&self) -> anyhow::Result<(Duration, Cleanup<'_>)> {
        let manifest = "---\n{apiVersion: v1, kind: Pod, metadata: {name: one-more}, \
            spec: {terminationGracePeriodSeconds: 0, \
            containers: [{name: http, image: podwire.dev/toolbox}]}}";
        let start = Instant::now();
        self.kubectl(&["apply", "-f", "-"], manifest)?;
        self.kubectl(
            &[
                "wait",
                "--for=condition=Ready",
                "pod/one-more",
                "--timeout=60s",
            ],
            "",
        )?;
        Ok((
            start.elapsed(),
            Cleanup {
                lab: self,
                object: "pod/one-more",
            },
        ))
    }

    /// One more Service, from the start of `kubectl apply` until a pod that
    /// asks all the time has had an answer.
    pub(crate) fn service_added(&self) -> anyhow::Result<(Duration, Cleanup<'_>)> {
        let start = Instant::now();
        self.kubectl(&["apply", "-f", "-"], SERVICE)?;
        self.ask_until_answered()?;
        Ok((
            start.elapsed(),
            Cleanup {
                lab: self,
                object: "service/one-more",
            },
        ))
    }

    /// The same two commands when the Service is there already: what `kubectl`
    /// and the asking take by themselves.
    pub(crate) fn service_asked(&self) -> anyhow::Result<(Duration, Cleanup<'_>)> {
        self.kubectl(&["apply", "-f", "-"], SERVICE)?;
        self.ask_until_answered()?;
        let start = Instant::now();
        self.kubectl(&["apply", "-f", "-"], SERVICE)?;
        self.ask_until_answered()?;
        Ok((
            start.elapsed(),
            Cleanup {
                lab: self,
                object: "service/one-more",
            },
        ))
    }

    fn ask_until_answered(&self) -> anyhow::Result<()> {
        for _ in 0..200 {
            let asked = Command::new(&self.podwire)
                .args(["lab", "exec", "--name", &self.name, "web-0", "--"])
                .args([
                    "curl",
                    "-s",
                    "--connect-timeout",
                    "0.2",
                    "http://10.96.0.99/hostname",
                ])
                .stdout(Stdio::null())
                .status()?;
            if asked.success() {
                return Ok(());
            }
        }
        bail!("the Service did not answer")
    }

    fn podwire(&self, arguments: &[&str]) -> anyhow::Result<()> {
        let mut all = vec!["lab"];
        all.extend(arguments);
        all.extend(["--name", &self.name]);
        finish(Command::new(&self.podwire).args(&all), "")
    }

    fn kubectl(&self, arguments: &[&str], input: &str) -> anyhow::Result<()> {
        let kubeconfig = format!("--kubeconfig=/run/podwire/lab/{}/kubeconfig", self.name);
        finish(
            Command::new("kubectl").arg(kubeconfig).args(arguments),
            input,
        )
    }
}

const SERVICE: &str = "---\n{apiVersion: v1, kind: Service, metadata: {name: one-more}, \
    spec: {clusterIP: 10.96.0.99, selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}}";

impl Drop for Lab {
    fn drop(&mut self) {
        if let Err(error) = self.podwire(&["down"]) {
            eprintln!("{error:#}");
        }
    }
}

/// Deletes an object when dropped.
pub(crate) struct Cleanup<'a> {
    lab: &'a Lab,
    object: &'static str,
}

impl Drop for Cleanup<'_> {
    fn drop(&mut self) {
        if let Err(error) = self
            .lab
            .kubectl(&["delete", self.object, "--timeout=30s"], "")
        {
            eprintln!("{error:#}");
        }
    }
}

fn finish(command: &mut Command, input: &str) -> anyhow::Result<()> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {command:?}"))?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.as_bytes())?;
    }
    let output = child.wait_with_output()?;
    if !output.status.success() {
        bail!(
            "{command:?}: {}\n{}{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(())
}
