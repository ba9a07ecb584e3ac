#!/bin/sh
echo "this file came with the workdir"
