//! Compiles the wire contract. protox is a parser in Rust, so no `protoc` has to be installed.

#[cfg(feature = "proto")]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    const FILES: [&str; 3] = [
        "proto/heddle/v1/discovery.proto",
        "proto/heddle/v1/identity.proto",
        "proto/heddle/v1/replica.proto",
    ];
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(FILES, ["proto"])?;
    tonic_prost_build::configure().bytes(".heddle.v1.Resource.body").compile_fds(descriptors)?;
    Ok(())
}

#[cfg(not(feature = "proto"))]
fn main() {
    println!("cargo:rerun-if-changed=build.rs");
}
