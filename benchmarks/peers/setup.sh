#!/bin/bash
# Builds the peers' virtual environment: ./setup.sh DIR   (creates DIR/venv; needs gcc, g++, cmake >= 3.21, ninja)
set -euo pipefail
dir=$(realpath "${1:-.}"); mkdir -p "$dir/sdist"
here=$(cd "$(dirname "$0")" && pwd)
[ -x "$dir/venv/bin/python" ] || python3 -m venv "$dir/venv"
pip="nice -n 10 $dir/venv/bin/pip"
$pip install -q torch==2.13.0
$pip install -q onnxruntime-genai==0.18.0 onnxruntime==1.31.1 onnx==1.23.2 onnx-ir==1.1.0 transformers==5.23.0 safetensors==0.8.0 gguf==0.19.0 \
    scikit-build-core==1.1.2 ninja==1.13.2 cmake==4.4.4
# llama.cpp: only libllama and ggml are built. The sdist forces LLAMA_BUILD_COMMON on (HTTP, chat templates: minutes of compilation,
# no part of inference), so that one line is switched off; nothing else is changed.
$pip download -q --no-deps --no-binary :all: --no-build-isolation -d "$dir/sdist" llama-cpp-python==0.3.36
rm -rf "$dir/sdist/llama_cpp_python-0.3.36"
tar -xzf "$dir/sdist/llama_cpp_python-0.3.36.tar.gz" -C "$dir/sdist"
sed -i 's/set(LLAMA_BUILD_COMMON ON CACHE/set(LLAMA_BUILD_COMMON OFF CACHE/' "$dir/sdist/llama_cpp_python-0.3.36/CMakeLists.txt"
export CMAKE_BUILD_PARALLEL_LEVEL=1
export CMAKE_ARGS="-DCMAKE_BUILD_TYPE=Release -DLLAVA_BUILD=OFF -DGGML_NATIVE=ON -DGGML_OPENMP=OFF -DLLAMA_BUILD_TOOLS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_OPENSSL=OFF"
nice -n 10 "$dir/venv/bin/pip" install -v --no-build-isolation "$dir/sdist/llama_cpp_python-0.3.36" > "$dir/llama_build.log" 2>&1
"$dir/venv/bin/python" -c "import llama_cpp; print(llama_cpp.__version__, llama_cpp.llama_print_system_info().decode())"
