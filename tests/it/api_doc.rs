//! docs/api.md is what the proto files and the table of HTTP routes say: rendered from what the daemon was built from.
//!
//! After a change of the proto files, `UPDATE_DOCS=1 cargo test api_doc` writes it anew.

use std::fmt::Write;

use claviger::{
    error::Reason,
    grpc::proto::DESCRIPTOR,
    model::{METHODS, Method, ROUTES},
};
use prost_reflect::{
    DescriptorPool, EnumDescriptor, FieldDescriptor, FileDescriptor, Kind, MessageDescriptor,
    MethodDescriptor,
};

const PATH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/api.md");
const PACKAGE: &str = "claviger.v1";

const HEAD: &str = "\
# API reference

Rendered from `proto/claviger/v1/`; a test compares it. After a change there: `UPDATE_DOCS=1 cargo test api_doc`.

Every RPC names the Cedar action that a policy must permit, what kind of work it is, and its exposure:

- **admin** changes something; its audit row is written in the transaction of the change, and the answer carries a
  `Receipt`. **read** and **data** calls are on the replica's `access` stream before the answer leaves.
- Exposure says who a call is meant for: **public**, **internal** (services of the platform), **admin** (security and
  operations), **debug**. It is a label here and in the metrics; what decides is the policy.

The [routes of the public listener](#http-routes) are declared in the same way.

Failures are gRPC statuses with a `google.rpc.ErrorInfo`, whose `reason` is stable and whose `domain` is `claviger`; the
[reasons](#reasons) are at the end.

Field types: `…[]` is repeated, `map<K, V>` is a map, `?` may be unset and that means something.
";

#[test]
fn api_md_is_what_the_proto_files_say() {
    let rendered = render();
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(PATH, &rendered).expect("docs/api.md can be written");
        return;
    }
    let written = std::fs::read_to_string(PATH).unwrap_or_default();
    let differs = rendered
        .lines()
        .zip(written.lines().chain(std::iter::repeat("")))
        .enumerate()
        .find(|(_, (rendered, written))| rendered != written);
    if rendered != written {
        panic!(
            "docs/api.md is not what the proto files say, first here: {differs:?}\n\
             write it anew with: UPDATE_DOCS=1 cargo test api_doc"
        );
    }
}

fn render() -> String {
    let pool = DescriptorPool::decode(DESCRIPTOR).expect("the descriptor decodes");
    let files: Vec<_> = pool
        .files()
        .filter(|file| file.package_name() == PACKAGE)
        .collect();
    let mut out = HEAD.to_owned();
    for file in files.iter().filter(|file| file.services().len() > 0) {
        render_file(&mut out, file);
    }
    out.push_str("\n## Shared types\n");
    for file in files.iter().filter(|file| file.services().len() == 0) {
        // The access option is what this page shows; its own types are of no use to a caller.
        if !file.name().ends_with("/options.proto") {
            render_types(&mut out, file);
        }
    }
    render_routes(&mut out);
    render_reasons(&mut out);
    out
}

// R-ACL-4
fn render_routes(out: &mut String) {
    out.push_str(
        "\n## HTTP routes\n\nOf the public listener, from the table that its router is built from; a route that is not in \
         it does not exist. What they take and answer: [oauth.md](oauth.md), \
         [vault.md](vault.md).\n\n\
         | method | path | action | kind | exposure |\n|---|---|---|---|---|\n",
    );
    for route in ROUTES {
        let (action, kind) = (route.action.name(), route.action.kind());
        let labels = format!("{kind:?} | {:?}", route.exposure).to_lowercase();
        let (method, path) = (route.method, route.path);
        add(
            out,
            format_args!("| {method} | `{path}` | {action} | {labels} |\n"),
        );
    }
}

fn render_reasons(out: &mut String) {
    out.push_str("\n## Reasons\n\n| reason | gRPC code |\n|---|---|\n");
    for reason in Reason::ALL {
        let kind = format!("{:?}", reason.kind());
        let code = kind.char_indices().fold(String::new(), |mut code, (i, c)| {
            if i > 0 && c.is_uppercase() {
                code.push('_');
            }
            code.push(c.to_ascii_uppercase());
            code
        });
        add(out, format_args!("| `{}` | {code} |\n", reason.as_str()));
    }
}

fn render_file(out: &mut String, file: &FileDescriptor) {
    for service in file.services() {
        let comment = comment(file, service.path());
        add(out, format_args!("\n## {}\n\n{comment}\n", service.name()));
        out.push_str("\n| RPC | action | kind | exposure |\n|---|---|---|---|\n");
        for method in service.methods() {
            let (name, declared) = (method.name(), declared(&method));
            let (action, kind) = (declared.action.name(), declared.action.kind());
            let row = format!("{kind:?} | {:?}", declared.exposure).to_lowercase();
            let link = name.to_lowercase();
            add(
                out,
                format_args!("| [{name}](#{link}) | {action} | {row} |\n"),
            );
        }
        for method in service.methods() {
            let name = method.name();
            add(out, format_args!("\n### {name}\n\n"));
            let (input, output) = (method.input(), method.output());
            let (asks, answers) = (
                link(local(input.full_name())),
                link(local(output.full_name())),
            );
            add(
                out,
                format_args!("`{}` · {asks} → {answers}\n\n", declared(&method).path),
            );
            add(
                out,
                format_args!("{}\n", self::comment(file, method.path())),
            );
        }
    }
    render_types(out, file);
}

fn render_types(out: &mut String, file: &FileDescriptor) {
    for message in file.messages().filter(|m| !m.is_map_entry()) {
        render_message(out, file, &message);
    }
    for values in file.enums() {
        render_enum(out, file, &values);
    }
}

fn render_message(out: &mut String, file: &FileDescriptor, message: &MessageDescriptor) {
    let comment = comment(file, message.path());
    add(
        out,
        format_args!("\n### {}\n\n{comment}\n", local(message.full_name())),
    );
    if message.fields().len() > 0 {
        out.push_str("\n| field | type | meaning |\n|---|---|---|\n");
    }
    let mut fields: Vec<_> = message.fields().collect();
    fields.sort_by_key(FieldDescriptor::number);
    for field in fields {
        let (name, kind) = (field.name(), field_type(&field));
        let meaning = cell(&self::comment(file, field.path()));
        let choice = field
            .containing_oneof()
            .filter(|oneof| !oneof.is_synthetic())
            .map(|oneof| format!(" One of `{}`.", oneof.name()))
            .unwrap_or_default();
        add(
            out,
            format_args!("| `{name}` | {kind} | {meaning}{choice} |\n"),
        );
    }
    for inner in message.child_messages().filter(|m| !m.is_map_entry()) {
        render_message(out, file, &inner);
    }
    for inner in message.child_enums() {
        render_enum(out, file, &inner);
    }
}

fn render_enum(out: &mut String, file: &FileDescriptor, values: &EnumDescriptor) {
    let comment = comment(file, values.path());
    let name = local(values.full_name());
    add(out, format_args!("\n### {name}\n\n{comment}\n"));
    out.push_str("\n| value | number | meaning |\n|---|---|---|\n");
    for value in values.values() {
        let (name, number) = (value.name(), value.number());
        let meaning = cell(&self::comment(file, value.path()));
        add(out, format_args!("| `{name}` | {number} | {meaning} |\n"));
    }
}

/// What the daemon itself believes about the RPC.
fn declared(method: &MethodDescriptor) -> &'static Method {
    let path = format!("/{}/{}", method.parent_service().full_name(), method.name());
    METHODS
        .iter()
        .find(|declared| declared.path == path)
        .unwrap_or_else(|| panic!("{path} is in the daemon's table"))
}

fn field_type(field: &FieldDescriptor) -> String {
    if field.is_map() {
        let Kind::Message(entry) = field.kind() else {
            panic!("a map without an entry type");
        };
        let (key, value) = (entry.map_entry_key_field(), entry.map_entry_value_field());
        return format!("map<{}, {}>", kind(&key.kind()), kind(&value.kind()));
    }
    let kind = kind(&field.kind());
    let synthetic = field.containing_oneof().is_some_and(|o| o.is_synthetic());
    match (field.is_list(), synthetic) {
        (true, _) => format!("{kind}[]"),
        (false, true) => format!("{kind}?"),
        (false, false) => kind,
    }
}

/// A type's name; a link for the ones on this page.
fn kind(kind: &Kind) -> String {
    match kind {
        Kind::Message(message) => type_name(message.package_name(), message.full_name()),
        Kind::Enum(values) => type_name(values.package_name(), values.full_name()),
        scalar => format!("{scalar:?}").to_lowercase(),
    }
}

fn type_name(package: &str, full_name: &str) -> String {
    match package {
        PACKAGE => link(local(full_name)),
        _ => full_name.to_owned(),
    }
}

/// The name without our package: `BatchSignRequest.Item`.
fn local(full_name: &str) -> &str {
    full_name
        .strip_prefix(PACKAGE)
        .map_or(full_name, |name| name.trim_start_matches('.'))
}

/// A link to the heading of that name; anchors drop dots.
fn link(name: &str) -> String {
    format!("[{name}](#{})", name.to_lowercase().replace('.', ""))
}

/// The comment above a declaration. Every declaration has one, or the reference would have holes.
fn comment(file: &FileDescriptor, path: &[i32]) -> String {
    let info = file.file_descriptor_proto().source_code_info.as_ref();
    let location = info.and_then(|info| info.location.iter().find(|l| l.path == path));
    let text = location.map_or("", |location| location.leading_comments());
    let lines: Vec<_> = text.lines().map(str::trim).collect();
    let text = lines.join("\n").trim().to_owned();
    assert!(!text.is_empty(), "{}: {path:?} has no comment", file.name());
    text
}

/// As one line of a table.
fn cell(text: &str) -> String {
    text.replace('\n', " ").replace('|', "\\|")
}

fn add(out: &mut String, text: std::fmt::Arguments<'_>) {
    // Writing to a String cannot fail.
    let _ = out.write_fmt(text);
}
