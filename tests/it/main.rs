//! Every test that needs more than one module, in one binary.
mod conformance;
mod pkcs11;
mod softhsm;
