//! The rows: who asks which address under which policy with endpoints where, and
//! what the rules of Services say becomes of it (kube-proxy's
//! `TestInternalExternalMasquerade`, and the verdicts without endpoints).

#![allow(dead_code, reason = "shared by several test binaries")]

use std::collections::BTreeMap;
use std::fmt;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Caller {
    /// A pod of this node that is no endpoint.
    Pod,
    /// The endpoint of this node, which may reach itself.
    Endpoint,
    /// A process of the node.
    Node,
    /// A host outside the cluster.
    Outside,
}

impl Caller {
    pub(crate) const ALL: [Self; 4] = [Self::Pod, Self::Endpoint, Self::Node, Self::Outside];

    const fn text(self) -> &'static str {
        match self {
            Self::Pod => "pod",
            Self::Endpoint => "endpoint",
            Self::Node => "node",
            Self::Outside => "outside",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Target {
    ClusterIp,
    NodePort,
    LoadBalancer,
    ExternalIp,
}

impl Target {
    pub(crate) const ALL: [Self; 4] = [
        Self::ClusterIp,
        Self::NodePort,
        Self::LoadBalancer,
        Self::ExternalIp,
    ];

    const fn text(self) -> &'static str {
        match self {
            Self::ClusterIp => "ClusterIP",
            Self::NodePort => "NodePort",
            Self::LoadBalancer => "LB IP",
            Self::ExternalIp => "externalIP",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Policy {
    Cluster,
    ExternalLocal,
    InternalLocal,
    BothLocal,
}

impl Policy {
    pub(crate) const ALL: [Self; 4] = [
        Self::Cluster,
        Self::ExternalLocal,
        Self::InternalLocal,
        Self::BothLocal,
    ];

    const fn text(self) -> &'static str {
        match self {
            Self::Cluster => "Cluster",
            Self::ExternalLocal => "eTP Local",
            Self::InternalLocal => "iTP Local",
            Self::BothLocal => "both Local",
        }
    }

    pub(crate) const fn is_local(self, internal: bool) -> bool {
        matches!(
            (self, internal),
            (Self::BothLocal, _) | (Self::ExternalLocal, false) | (Self::InternalLocal, true)
        )
    }
}

/// Where endpoints are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Endpoints {
    HereAndElsewhere,
    Here,
    Elsewhere,
    Nowhere,
}

impl Endpoints {
    pub(crate) const ALL: [Self; 4] = [
        Self::HereAndElsewhere,
        Self::Here,
        Self::Elsewhere,
        Self::Nowhere,
    ];

    const fn text(self) -> &'static str {
        match self {
            Self::HereAndElsewhere => "here, elsewhere",
            Self::Here => "here",
            Self::Elsewhere => "elsewhere",
            Self::Nowhere => "none",
        }
    }

    pub(crate) const fn names(self) -> &'static [&'static str] {
        match self {
            Self::HereAndElsewhere => &["local", "remote"],
            Self::Here => &["local"],
            Self::Elsewhere => &["remote"],
            Self::Nowhere => &[],
        }
    }
}

/// What a caller sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Answers from these, and whether each saw the caller's own address.
    Answered(BTreeMap<String, bool>),
    Refused,
    Silence,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Answered(by) => {
                let source = |own: &bool| if *own { "" } else { " m" };
                let text: Vec<String> = by
                    .iter()
                    .map(|(name, own)| format!("{name}{}", source(own)))
                    .collect();
                f.write_str(&text.join(", "))
            }
            Self::Refused => f.write_str("refused"),
            Self::Silence => f.write_str("dropped"),
        }
    }
}

/// One row of the table, for every protocol and family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) endpoints: Endpoints,
    pub(crate) policy: Policy,
    pub(crate) target: Target,
    pub(crate) caller: Caller,
}

impl Row {
    /// Those of one state of the Service.
    pub(crate) fn of(endpoints: Endpoints, policy: Policy) -> impl Iterator<Item = Self> {
        Target::ALL.into_iter().flat_map(move |target| {
            Caller::ALL
                .into_iter()
                // Without endpoints here it is a pod as any other.
                .filter(move |caller| {
                    *caller != Caller::Endpoint || endpoints.names().contains(&"local")
                })
                .map(move |caller| Self {
                    endpoints,
                    policy,
                    target,
                    caller,
                })
        })
    }

    /// What the rules say.
    pub(crate) fn rule(&self) -> Outcome {
        let internal = self.target == Target::ClusterIp;
        let from_pod = matches!(self.caller, Caller::Pod | Caller::Endpoint);
        // Pods and the node are not narrowed to local endpoints by the external policy.
        let only_local =
            self.policy.is_local(internal) && (internal || self.caller == Caller::Outside);
        let all = self.endpoints.names();
        if all.is_empty() {
            return Outcome::Refused;
        }
        let used: BTreeMap<String, bool> = all
            .iter()
            .filter(|name| !only_local || **name == "local")
            .map(|name| {
                let hairpin = self.caller == Caller::Endpoint && *name == "local";
                let own = match (self.caller, internal) {
                    // The node's own address is the node's address.
                    (Caller::Node, _) => false,
                    _ if hairpin => false,
                    (_, true) => from_pod,
                    (_, false) => self.policy.is_local(false),
                };
                ((*name).to_owned(), own)
            })
            .collect();
        if used.is_empty() {
            Outcome::Silence
        } else {
            Outcome::Answered(used)
        }
    }
}

/// The rows with what was seen, for people: one line a row, one column a
/// protocol and family.
pub(crate) struct Report {
    columns: Vec<String>,
    lines: Vec<String>,
    wrong: Vec<String>,
}

impl Report {
    pub(crate) fn new(columns: impl IntoIterator<Item = String>) -> Self {
        Self {
            columns: columns.into_iter().collect(),
            lines: Vec::new(),
            wrong: Vec::new(),
        }
    }

    pub(crate) fn add(&mut self, row: &Row, seen: &[Outcome]) {
        let rule = row.rule();
        let mut line = format!(
            "{:<16} {:<10} {:<10} {:<8} {:<18}",
            row.endpoints.text(),
            row.policy.text(),
            row.target.text(),
            row.caller.text(),
            rule.to_string(),
        );
        for outcome in seen {
            let cell = if *outcome == rule {
                "ok".to_owned()
            } else {
                format!("[{outcome}]")
            };
            line.push_str(&format!(" {cell:<5}"));
        }
        if seen.iter().any(|outcome| *outcome != rule) {
            self.wrong.push(line.clone());
        }
        self.lines.push(line.trim_end().to_owned());
    }

    /// Prints all; fails with the rows that are wrong.
    pub(crate) fn finish(self, title: &str) {
        let columns: Vec<String> = self
            .columns
            .iter()
            .map(|column| format!("{column:<5}"))
            .collect();
        println!(
            "\nWho reaches which endpoints: {title}. \"m\": under the node's address.\n\
             {:<16} {:<10} {:<10} {:<8} {:<18} {}\n{}\n{} rows, {} wrong",
            "ENDPOINTS",
            "POLICY",
            "ASKED",
            "BY",
            "RULE",
            columns.join(" ").trim_end(),
            self.lines.join("\n"),
            self.lines.len(),
            self.wrong.len(),
        );
        assert!(self.wrong.is_empty(), "{title}:\n{}", self.wrong.join("\n"));
    }
}
