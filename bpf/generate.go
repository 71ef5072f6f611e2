package bpf

//go:generate go tool -modfile=../tools/go.mod bpf2go -cc clang-14 -strip llvm-strip -target bpfel -type drop_event -type knock_event guard src/guard.bpf.c -- -O2 -g -Wall -Werror -mcpu=v3 -Isrc/include
