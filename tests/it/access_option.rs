//! R-ACL-1: an RPC that does not declare its access stops the build. The build script's own code, on protos
//! that must be refused.

#[allow(dead_code)]
#[path = "../../build.rs"]
mod build;

use build::access_table;
use claviger::{grpc::proto::DESCRIPTOR, model::METHODS};
use protox::{
    Compiler,
    file::{ChainFileResolver, File, FileResolver, IncludeFileResolver},
};

/// `bad.proto` from memory; everything else from `proto/`.
struct InMemory(String);

impl FileResolver for InMemory {
    fn open_file(&self, name: &str) -> Result<File, protox::Error> {
        match name {
            "bad.proto" => File::from_source(name, &self.0),
            _ => Err(protox::Error::file_not_found(name)),
        }
    }
}

/// The access table of a service with these RPCs.
fn table(rpcs: &str) -> Result<Vec<build::MethodAccess>, String> {
    let source = format!(
        "syntax = \"proto3\";\n\
         package claviger.v1;\n\
         import \"claviger/v1/options.proto\";\n\
         message Empty {{}}\n\
         service Bad {{ {rpcs} }}\n"
    );
    let mut resolver = ChainFileResolver::new();
    resolver.add(InMemory(source));
    resolver.add(IncludeFileResolver::new(
        concat!(env!("CARGO_MANIFEST_DIR"), "/proto").into(),
    ));
    resolver.add(protox::file::GoogleFileResolver::new());
    let mut compiler = Compiler::with_file_resolver(resolver);
    compiler.include_imports(true);
    compiler.open_file("bad.proto").map_err(|e| e.to_string())?;
    access_table(&compiler.encode_file_descriptor_set())
}

fn rpc(name: &str, access: &str) -> String {
    format!("rpc {name}(Empty) returns (Empty) {{ {access} }}")
}

fn option(fields: &str) -> String {
    format!("option (claviger.v1.access) = {{ {fields} }};")
}

const GOOD: &str = "action: \"Poke\", kind: ACCESS_KIND_ADMIN, exposure: EXPOSURE_DEBUG";

#[test]
fn a_complete_declaration_is_read() -> Result<(), String> {
    let table = table(&rpc("Poke", &option(GOOD)))?;
    assert_eq!(table.len(), 1);
    assert_eq!(table[0].path, "/claviger.v1.Bad/Poke");
    assert_eq!(table[0].action, "Poke");
    assert_eq!((&*table[0].kind, &*table[0].exposure), ("Admin", "Debug"));
    Ok(())
}

#[test]
fn incomplete_declarations_are_refused_by_name() {
    let good = rpc("Good", &option(GOOD));
    for (access, expected) in [
        ("", "no (claviger.v1.access) option"),
        (&*option(""), "action is empty"),
        (
            &option("action: \"\", kind: ACCESS_KIND_ADMIN, exposure: EXPOSURE_DEBUG"),
            "action is empty",
        ),
        (
            &option("action: \"Poke\", exposure: EXPOSURE_DEBUG"),
            "kind is unspecified",
        ),
        (
            &option("action: \"Poke\", kind: ACCESS_KIND_UNSPECIFIED, exposure: EXPOSURE_DEBUG"),
            "kind is unspecified",
        ),
        (
            &option("action: \"Poke\", kind: ACCESS_KIND_ADMIN"),
            "exposure is unspecified",
        ),
        (
            &option("action: \"Poke\", kind: ACCESS_KIND_READ, exposure: EXPOSURE_DEBUG"),
            "two kinds",
        ),
    ] {
        let refusal = table(&format!("{good}\n{}", rpc("Sloppy", access))).err();
        let refusal = refusal.unwrap_or_default();
        assert!(
            refusal.contains("claviger.v1.Bad.Sloppy") && refusal.contains(expected),
            "{access:?} gave {refusal:?}"
        );
    }
}

#[test]
fn every_rpc_of_the_daemon_is_in_the_table() -> Result<(), Box<dyn std::error::Error>> {
    let table = access_table(DESCRIPTOR)?;
    let pool = prost_reflect::DescriptorPool::decode(DESCRIPTOR)?;
    let rpcs = pool.services().flat_map(|service| {
        let methods = service.methods().collect::<Vec<_>>();
        methods
            .into_iter()
            .map(move |method| format!("/{}/{}", service.full_name(), method.name()))
    });
    let mut declared: Vec<_> = table.iter().map(|row| row.path.clone()).collect();
    let mut rpcs: Vec<_> = rpcs.collect();
    declared.sort();
    rpcs.sort();
    assert_eq!(declared, rpcs);

    assert_eq!(METHODS.len(), table.len());
    for (method, row) in METHODS.iter().zip(&table) {
        assert_eq!(method.path, row.path);
        assert_eq!(method.action.name(), row.action);
        assert_eq!(format!("{:?}", method.action.kind()), row.kind);
        assert_eq!(format!("{:?}", method.exposure), row.exposure);
    }
    Ok(())
}
