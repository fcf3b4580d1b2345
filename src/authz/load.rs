//! From files to checked policies. Every error says where and what to do, because it stops the start.

use std::{collections::BTreeSet, io};

use cedar_policy::{PolicyId, PolicySet, Schema, SchemaFragment, ValidationMode, Validator};
use miette::Diagnostic;

use super::{
    entities::{Unanswerable, Words},
    policies::{Policies, PolicySource, SCHEMA, SCHEMA_FILE},
};
use crate::model::{Action, Role};

/// Why policies cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// A file or directory cannot be read.
    #[error(
        "cannot read {path}: {cause}; `authz.policies` must name a directory with *.cedar files and {SCHEMA_FILE}"
    )]
    Unreadable {
        /// Which.
        path: String,
        /// Why.
        cause: io::Error,
    },
    /// A directory without policies would deny everything.
    #[error(
        "{dir} has no *.cedar file; copy the default policies there, or leave `authz.policies` out to use them"
    )]
    NoPolicies {
        /// Which.
        dir: String,
    },
    /// Some policies are wrong.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Faults(Vec<Fault>),
    /// The schema is not that of this release.
    #[error(
        "{path} is not the schema of this release{difference}; copy {SCHEMA_FILE} from the release, and change policies instead"
    )]
    ForeignSchema {
        /// Which.
        path: String,
        /// What is different, as far as it is known.
        difference: String,
    },
    /// The built-in schema does not fit the program: a mistake in this release.
    #[error("the built-in schema does not fit this program: {0}")]
    BuiltIn(String),
}

/// Something wrong in a policy file.
#[derive(Debug, PartialEq, Eq)]
pub struct Fault {
    /// The file.
    pub file: String,
    /// The line, from 1.
    pub line: usize,
    /// What is wrong and what to do.
    pub message: String,
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}: {}", self.file, self.line, self.message)
    }
}

/// Parses files of (name, text) and validates all of them together, collecting every fault.
pub(super) fn check(files: &[(String, String)]) -> Result<Policies, PolicyError> {
    let schema = built_in_schema()?;
    let words =
        Words::new(&schema).map_err(|e: Unanswerable| PolicyError::BuiltIn(e.to_string()))?;
    let mut policies = Policies {
        set: PolicySet::new(),
        schema,
        words,
        sources: Vec::new(),
    };
    let mut faults = Vec::new();
    for (file, text) in files {
        read(file, text, &mut policies, &mut faults);
    }
    // Validation of half of the policies would only repeat the first mistake.
    if faults.is_empty() {
        validate(&policies, &mut faults);
    }
    if faults.is_empty() {
        Ok(policies)
    } else {
        Err(PolicyError::Faults(faults))
    }
}

fn read(file: &str, text: &str, policies: &mut Policies, faults: &mut Vec<Fault>) {
    let fault = |line, message: String| Fault {
        file: file.to_owned(),
        line,
        message,
    };
    let set: PolicySet = match text.parse() {
        Ok(set) => set,
        Err(errors) => {
            let labels = Diagnostic::labels(&errors);
            let offset = labels
                .and_then(|mut labels| labels.next())
                .map_or(0, |l| l.offset());
            let help = Diagnostic::help(&errors).map_or(String::new(), |help| format!("; {help}"));
            faults.push(fault(line_of(text, offset), format!("{errors}{help}")));
            return;
        }
    };
    for template in set.templates() {
        let line = line_of(text, text.find(&template.to_cedar()).unwrap_or(0));
        let message =
            "templates are not supported; write a policy without ?principal and ?resource";
        faults.push(fault(line, message.to_owned()));
    }
    let mut from = 0;
    for policy in set.policies() {
        let source = policy.to_cedar().unwrap_or_default();
        // Behind the one before, so that of two equal policies the second is found.
        let behind = text.get(from..).and_then(|rest| rest.find(&source));
        let at = behind.map(|at| from + at).or_else(|| text.find(&source));
        from = at.map_or(from, |at| at + source.len());
        let line = line_of(text, at.unwrap_or(0));
        let Some(id) = policy.annotation("id").filter(|id| !id.is_empty()) else {
            let message = "policy has no name; put @id(\"...\") in front of it";
            faults.push(fault(line, message.to_owned()));
            continue;
        };
        if policies.set.add(policy.new_id(PolicyId::new(id))).is_err() {
            let message = format!("there is another policy with @id(\"{id}\"); rename one");
            faults.push(fault(line, message));
            continue;
        }
        policies.sources.push(PolicySource {
            id: id.to_owned(),
            file: file.to_owned(),
            line,
            text: source,
        });
    }
}

/// Strict mode; warnings are faults too: a policy that can never apply protects nobody.
fn validate(policies: &Policies, faults: &mut Vec<Fault>) {
    let result =
        Validator::new(policies.schema.clone()).validate(&policies.set, ValidationMode::Strict);
    let errors = result
        .validation_errors()
        .map(|e| (e.policy_id(), e.to_string(), e.help()));
    let errors = errors.map(|(id, text, help)| (id, text, help.map(|help| help.to_string())));
    let warnings = result
        .validation_warnings()
        .map(|w| (w.policy_id(), w.to_string(), None));
    for (id, message, help) in errors.chain(warnings) {
        let source = policies.find(id);
        faults.push(Fault {
            file: source.map_or_else(|| "?".to_owned(), |source| source.file.clone()),
            line: source.map_or(0, |source| source.line),
            message: help.map_or_else(|| message.clone(), |help| format!("{message}; {help}")),
        });
    }
    faults.sort_by(|a, b| (&a.file, a.line).cmp(&(&b.file, b.line)));
}

fn line_of(text: &str, offset: usize) -> usize {
    let before = text.bytes().take(offset);
    1 + before.filter(|byte| *byte == b'\n').count()
}

/// The schema names exactly the actions of the proto files and the roles of the program.
fn built_in_schema() -> Result<Schema, PolicyError> {
    let broken = |e: String| PolicyError::BuiltIn(e);
    let (fragment, _) =
        SchemaFragment::from_cedarschema_str(SCHEMA).map_err(|e| broken(e.to_string()))?;
    let names = Names::of(&fragment).map_err(broken)?;
    let expected = Names {
        actions: Action::ALL.iter().map(|a| a.name().to_owned()).collect(),
        roles: Role::ALL.iter().map(|r| r.as_str().to_owned()).collect(),
    };
    if let Some(difference) = expected.difference(&names) {
        return Err(broken(difference));
    }
    Schema::from_schema_fragments([fragment]).map_err(|e| broken(e.to_string()))
}

/// Errors unless `text` says the same as the built-in schema; comments and layout may differ.
pub(super) fn same_schema(path: &str, text: &str) -> Result<(), PolicyError> {
    let foreign = |difference: String| PolicyError::ForeignSchema {
        path: path.to_owned(),
        difference,
    };
    let parse = |text| {
        let (fragment, _) =
            SchemaFragment::from_cedarschema_str(text).map_err(|e| e.to_string())?;
        let names = Names::of(&fragment)?;
        let json = fragment.to_json_value().map_err(|e| e.to_string())?;
        Ok((names, json))
    };
    let (names, theirs) = parse(text).map_err(|e: String| foreign(format!(" ({e})")))?;
    let (expected, ours) = parse(SCHEMA).map_err(PolicyError::BuiltIn)?;
    if ours == theirs {
        return Ok(());
    }
    let difference = expected.difference(&names);
    Err(foreign(
        difference.map_or(String::new(), |d| format!(" ({d})")),
    ))
}

/// Names in a schema that the program knows as well.
struct Names {
    actions: BTreeSet<String>,
    roles: BTreeSet<String>,
}

impl Names {
    fn of(fragment: &SchemaFragment) -> Result<Self, String> {
        let json = fragment
            .clone()
            .to_json_value()
            .map_err(|e| e.to_string())?;
        let actions = json[""]["actions"].as_object().into_iter().flatten();
        let roles = json[""]["entityTypes"]["Role"]["enum"].as_array();
        Ok(Self {
            // Kinds of actions apply to nothing.
            actions: actions
                .filter(|(_, action)| {
                    action["appliesTo"]["resourceTypes"]
                        .as_array()
                        .is_some_and(|r| !r.is_empty())
                })
                .map(|(name, _)| name.clone())
                .collect(),
            roles: roles
                .into_iter()
                .flatten()
                .filter_map(|role| role.as_str().map(str::to_owned))
                .collect(),
        })
    }

    fn difference(&self, other: &Self) -> Option<String> {
        let mut parts = Vec::new();
        for (what, ours, theirs) in [
            ("action", &self.actions, &other.actions),
            ("role", &self.roles, &other.roles),
        ] {
            parts.extend(
                ours.difference(theirs)
                    .map(|name| format!("{what} {name} is missing")),
            );
            parts.extend(
                theirs
                    .difference(ours)
                    .map(|name| format!("{what} {name} is unknown")),
            );
        }
        (!parts.is_empty()).then(|| parts.join(", "))
    }
}
