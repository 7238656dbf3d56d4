# arm64 Linux with Debian's cross compiler (g++-aarch64-linux-gnu). CROSS_ROOT names a folder into which its packages were extracted with
# dpkg-deb -x, where they are not installed; CROSS_SUFFIX is the compiler's, for example -12.
#
# Android: use the toolchain file of the NDK instead, with builds of ONNX Runtime or ExecuTorch for Android:
#   -DCMAKE_TOOLCHAIN_FILE=$ANDROID_NDK/build/cmake/android.toolchain.cmake -DANDROID_ABI=arm64-v8a -DANDROID_PLATFORM=android-28
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CROSS_ROOT "" CACHE PATH "Folder of the extracted cross compiler; empty where it is installed")
set(CROSS_SUFFIX "" CACHE STRING "Suffix of the compiler's name")
set(CMAKE_TRY_COMPILE_PLATFORM_VARIABLES CROSS_ROOT CROSS_SUFFIX)
if(CROSS_ROOT)
  set(CMAKE_CXX_COMPILER "${CROSS_ROOT}/usr/bin/aarch64-linux-gnu-g++${CROSS_SUFFIX}")
  string(REPLACE "-" "" version "${CROSS_SUFFIX}")
  set(CMAKE_CXX_FLAGS_INIT "--sysroot=${CROSS_ROOT} -B${CROSS_ROOT}/usr/lib/gcc-cross/aarch64-linux-gnu/${version}")
else()
  set(CMAKE_CXX_COMPILER "aarch64-linux-gnu-g++${CROSS_SUFFIX}")
endif()
